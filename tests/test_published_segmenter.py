"""The authors' segmentation checkpoints, mmsegmentation's: loaded, computed and evaluated as published."""

from __future__ import annotations

import json
from pathlib import Path

import atmnet
import pytest
import timm
import torch
from accelerate import Accelerator
from ade_shapes import write_ade
from atmnet.weights.naming import from_official
from atmnet.weights.reader import read_checkpoint
from atmnet_train import ade20k
from atmnet_train.common.dense import start_weights
from atmnet_train.common.errors import UsageError
from atmnet_train.common.weights import Weights, load_weights
from atmnet_train.segmentation.optimizer import make_optimizer
from atmnet_train.segmentation.settings import OptimizerSettings, SegmenterSettings
from published_segmenter import Published, fcn_head, fpn_head, resize, uper_head
from safetensors.torch import save_file
from torch import Tensor

SMALL = Published(dims=(8, 16, 24, 32), dim=32, auxiliary_dim=32, neck_dim=32, fpn_dim=32, num_classes=3)
DIMS = dict(dims=SMALL.dims)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "active_large_upernet_160k.pth"
    torch.save({"meta": {"iter": 160_000, "CLASSES": ("wall", "sky")}, "state_dict": SMALL.weights("upernet"), "amp": {}}, path)
    return path


@pytest.mark.parametrize("head", ["upernet", "semantic-fpn"])
def test_names_and_shapes(head: str):
    with torch.device("meta"):
        own = {name: tuple(value.shape) for name, value in atmnet.create_segmenter("atmnet_l", head).state_dict().items()}
    published = {from_official(name): shape for name, shape in Published().shapes(head).items()}
    assert published.keys() == own.keys()
    assert {name for name in own if own[name] != published[name]} == {name for name in own if name.endswith(("fc_w.weight", "fc_h.weight"))}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@torch.no_grad()
def check(published: Published, head: str, source: object, **kwargs: object) -> None:
    images = torch.randn(2, 3, 70, 93, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = {name: value.double() for name, value in published.weights(head).items()}
    maps = published.maps(weights, images)
    expected = (uper_head if head == "upernet" else fpn_head)(weights, maps)
    model = atmnet.create_segmenter("atmnet_l", head, num_classes=published.num_classes, **kwargs).eval()
    atmnet.load_official(model, source)
    assert_close(model(images.float()).double(), resize(expected, images), 1e-5)
    if model.auxiliary_head is not None:
        assert_close(model.auxiliary_head(maps[2].float()).double(), fcn_head(weights, maps), 1e-5)
    if kwargs:
        assert_close(model.double().decode_head(maps if model.neck is None else model.neck(maps)), expected, 1e-12)


@pytest.mark.usefixtures("narrow_segmenters")
def test_logits_of_upernet_are_the_published_ones(file: Path):
    check(SMALL, "upernet", file, **DIMS)


@pytest.mark.usefixtures("narrow_segmenters")
def test_logits_of_semantic_fpn_are_the_published_ones():
    check(SMALL, "semantic-fpn", {"state_dict": SMALL.weights("semantic-fpn")}, **DIMS)


def test_it_is_read_whole_by_others_names_too(tmp_path: Path):
    """Files of a parallel model, and bare as safetensors; nothing takes the backbone alone."""
    weights = SMALL.weights("upernet")
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "parallel.pth")
    save_file(weights, tmp_path / "bare.safetensors")
    for name in ("parallel.pth", "bare.safetensors"):
        found = read_checkpoint(tmp_path / name, ema=None)
        assert found.weights.keys() == weights.keys() and found.published and not found.averaged
        assert found.meta == {"depths": tuple(SMALL.depths), "head": "upernet", "num_classes": 3}
        with pytest.raises(ValueError, match=r"holds a segmenter, not a classifier: atmnet\.open_segmenter opens it"):
            atmnet.open_classifier(tmp_path / name, "atmnet-l")


@pytest.mark.exhaustive
def test_logits_at_full_width():
    check(Published(), "upernet", {"state_dict": Published().weights("upernet")})


@pytest.mark.usefixtures("narrow_segmenters", "fresh_accelerate")
def test_the_program_evaluates_it(file: Path, tmp_path: Path):
    data = write_ade(tmp_path / "data")
    flags = ["--data-dir", str(data), "--workers", "0", "--pictures", "0", "--output", str(tmp_path / "eval")]
    flags += ["--model-kwargs", "dims=(8,16,24,32)", "--crop-size", "64"]
    ade20k.main(["--eval", str(file), "--head", "upernet", *flags])
    report = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert (report["model"], report["head"], report["images"]) == ("atmnet_l", "upernet", 3)
    assert [row["class"] for row in report["classes"]] == ["class 1", "class 2", "class 3"]
    (data / "classes.txt").write_text("one\ntwo")
    with pytest.raises(UsageError, match=r"160k\.pth was trained on other classes: 3; here one, two"):
        ade20k.main(["--eval", str(file), *flags])


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (0, 2)], ids=str)
@torch.no_grad()
def test_features_take_its_backbone_with_the_norms_of_maps(out_indices: tuple[int, ...], file: Path):
    images = torch.randn(2, 3, 70, 93, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    maps = SMALL.maps({name: value.double() for name, value in SMALL.weights("upernet").items()}, images)
    features = timm.create_model("atmnet_l", features_only=True, out_indices=out_indices, **DIMS).double().eval()
    atmnet.load_official(features, file)
    for i, y in zip(out_indices, features(images), strict=True):
        assert_close(y, maps[i], 1e-12)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("heads", ["decode_head.", "bbox_head."])
def test_training_starts_from_its_backbone(heads: str, tmp_path: Path):
    """On other classes, or as a detector. Files of mmdetection have other heads."""
    weights = {name.replace("decode_head.", heads): value for name, value in SMALL.weights("upernet").items()}
    torch.save({"state_dict": weights}, tmp_path / "dense.pth")
    settings = SegmenterSettings(model="atmnet_l", backbone_weights=str(tmp_path / "dense.pth"))
    model = atmnet.Backbone("atmnet_l", **DIMS)
    start_weights(settings, Accelerator(cpu=True), model)
    for i, norm in model.net.norms.items():
        assert torch.equal(norm.bias, weights[f"backbone.norm_{i}.bias"])
    assert torch.equal(model.net.model.stem.weight, weights["backbone.patch_embed.proj.weight"])
    with pytest.raises(
        UsageError, match=r"is a published ATMNet that does not fit --model: .* ATMNetFeatures:\n  missing: model\.stages\.2"
    ):
        start_weights(settings, Accelerator(cpu=True), atmnet.Backbone("atmnet_t", dims=SMALL.dims))


def test_weight_decay_of_upernet_is_the_authors():
    """Parameters that they exempt by name are exempt, and no other tensor."""
    with torch.device("meta"):
        model = atmnet.create_segmenter("atmnet_l", "upernet")
    decayed, exempt = make_optimizer(OptimizerSettings(), model, "upernet").param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.01, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [{names[id(parameter)] for parameter in group["params"]} for group in (decayed, exempt)]
    assert found[1] == {from_official(name) for name in Published().shapes("upernet") if "norm" in name}
    assert found[0] == set(names.values()) - found[1]


def test_earlier_layouts_are_refused(tmp_path: Path):
    with torch.device("meta"):
        model = atmnet.create_segmenter("atmnet_xt", "upernet")
    earlier = {name.replace("decode_head.conv_seg", "head.classifier.1"): value for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=r"^a file holds a segmentation network of the earlier layout, .*: train it again$"):
        load_weights(model, Weights("a file", earlier))
