"""Weights on disk: published checkpoints, and ours."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import atmnet
import pytest
import timm
import torch
from atmnet.weights import saved
from atmnet.weights.naming import from_official
from official import to_official
from safetensors import safe_open
from torch import Tensor, nn

KEYS = json.loads((Path(__file__).parent / "fixtures" / "official_xt_keys.json").read_text())


def create(name: str = "atmnet_xt", seed: int = 0, **kwargs) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return to_official(create(seed=1))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def assert_equal_weights(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_published_names_and_shapes(published):
    assert {name: list(value.shape) for name, value in published.items()} == KEYS
    assert {from_official(name) for name in KEYS} == set(create().state_dict())


@pytest.mark.parametrize("name", list(atmnet.VARIANTS))
def test_every_variant_reads_its_published_weights(name):
    model = create(name)
    original = {name: value.clone() for name, value in model.state_dict().items()}
    weights = to_official(model)
    assert len(weights) == len(original)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert atmnet.load_official(model, weights) is model
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, original[name])] == []


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_published_file(tmp_path, published, zipped):
    """File as the published code writes it: weights, their moving average, the optimizer's state, the command line's arguments."""
    content = {
        "model": {f"module.{name}": value for name, value in published.items()},
        "model_ema": {name: value + 1 for name, value in published.items()},
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "epoch": 299,
        "args": argparse.Namespace(model="ATMNet_xT", lr=1e-3, output_dir=""),
    }
    path = tmp_path / "published.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_equal_weights(atmnet.load_official(create(), path), atmnet.load_official(create(), published))
    averaged = atmnet.load_official(create(), str(path), ema=True)
    torch.testing.assert_close(averaged.norm.bias, published["norm.bias"] + 1)
    torch.testing.assert_close(averaged.stages[0].blocks[1].mixer.fc_h.weight, published["blocks.0.1.atm.atm_h.weight"][..., 0, 0] + 1)


def test_no_moving_average(published):
    for content in ({"model": published}, {"model": published, "model_ema": None}, published):
        with pytest.raises(ValueError, match="no averaged weights under 'model_ema' or 'state_dict_ema'; it has (model|patch_embed)"):
            atmnet.load_official(create(), content, ema=True)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (0, 2)], ids=str)
def test_features_take_the_backbone(published, images, out_indices):
    features = create(features_only=True, out_indices=out_indices)
    before = {name: value.clone() for name, value in features.norms.state_dict().items()}
    atmnet.load_official(features, {"model": published})
    whole = atmnet.load_official(create(), published)
    with torch.no_grad():
        stages = whole.forward_intermediates(images, list(out_indices), intermediates_only=True)
        for a, b in zip(features.model.forward_intermediates(images, list(out_indices), intermediates_only=True), stages, strict=True):
            torch.testing.assert_close(a, b)
    assert all(torch.equal(value, before[name]) for name, value in features.norms.state_dict().items())


def test_no_classifier(published, images):
    headless = atmnet.load_official(create(num_classes=0), published).eval()
    whole = atmnet.load_official(create(), published).eval()
    with torch.no_grad():
        torch.testing.assert_close(headless(images), whole.forward_head(whole.forward_features(images), pre_logits=True))


def test_other_classes_say_how(published):
    model = create(num_classes=10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        atmnet.load_official(model, published)
    assert "head.fc.weight is [1000, 512] in the checkpoint, [10, 512] in the model" in str(error.value)
    assert "reset_classifier" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # all or nothing


def test_another_variant_is_listed(published):
    with pytest.raises(ValueError) as error:
        atmnet.load_official(create("atmnet_l", device="meta"), published)
    message = str(error.value)
    assert "missing: stages.0.blocks.2.norm1.weight [96]" in message
    assert re.search(r"\.\.\. and \d+ more", message) and len(message.splitlines()) < 25
    assert "reset_classifier" not in message

    with pytest.raises(ValueError) as error:
        atmnet.load_official(create(depths=(1, 2, 4, 2)), published)
    assert "unexpected: stages.0.blocks.1.norm1.weight [64]" in str(error.value)

    with pytest.raises(ValueError) as error:
        atmnet.load_official(create(in_chans=1), published)
    assert "stem.weight is [64, 3, 7, 7] in the checkpoint, [64, 1, 7, 7] in the model" in str(error.value)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_files_that_are_no_checkpoint(tmp_path, published):
    model = create()
    with pytest.raises(FileNotFoundError, match="absent"):
        atmnet.load_official(model, tmp_path / "absent.pth")
    path = tmp_path / "some.pth"
    for content in (b"", b"hello", b"PK\x03\x04 truncated"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"some\.pth is not a checkpoint that can be read"):
            atmnet.load_official(model, path)
    for content in ([1, 2], torch.zeros(3)):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"some\.pth holds a (list|Tensor)"):
            atmnet.load_official(model, path)
    torch.save({"weights": published, "epoch": 3}, path)
    with pytest.raises(ValueError, match="no weights under 'model' or 'state_dict'; it has weights, epoch"):
        atmnet.load_official(model, path)
    torch.save({"model": Evil(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        atmnet.load_official(model, path)
    assert not (tmp_path / "ran").exists()


def test_save_and_load(tmp_path):
    model, path = create(seed=1), tmp_path / "new" / "model.safetensors"
    atmnet.save(model, path, epoch=3, note="a best one")
    other = create(seed=2)
    assert atmnet.load(other, path) is other
    assert_equal_weights(model, other)
    with safe_open(path, "pt") as file:
        assert {name: text for name, text in file.metadata().items() if name != "digest"} == {"epoch": "3", "note": "a best one"}
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert_equal_weights(timm.create_model("atmnet_xt", checkpoint_path=str(path)), model)  # timm reads it too


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_save_and_load_features_and_16_bits(tmp_path):
    model, path = create(seed=1, features_only=True).to(torch.bfloat16), tmp_path / "model.safetensors"
    atmnet.save(model, path)
    assert_equal_weights(atmnet.load(create(features_only=True).to(torch.bfloat16), path), model)


def test_save_and_load_see_through_wrappers(tmp_path):
    model, path = create(seed=1), tmp_path / "model.safetensors"
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    atmnet.save(wrapped, path)
    assert_equal_weights(atmnet.load(create(), path), model)
    other = create(seed=2)
    atmnet.load(torch.compile(other, backend="eager"), path)
    assert_equal_weights(other, model)
    atmnet.load_official(torch.compile(other, backend="eager"), to_official(model))


@pytest.mark.parametrize("fails", [(os, "replace"), (saved, "to_safetensors")], ids=["replace", "write"])
def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch, fails):
    path = tmp_path / "model.safetensors"
    old = create(seed=1)
    atmnet.save(old, path)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*fails, no_space)
        with pytest.raises(OSError, match="No space"):
            atmnet.save(create(seed=2), path)
    assert_equal_weights(atmnet.load(create(), path), old)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_a_killed_save_left_is_no_obstacle(tmp_path):
    (tmp_path / ".model.partial.safetensors").write_bytes(b"half")
    atmnet.save(create(seed=1), tmp_path / "model.safetensors")
    assert_equal_weights(atmnet.load(create(), tmp_path / "model.safetensors"), create(seed=1))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_load_says_what_is_wrong(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="model"):
        atmnet.load(create(), path)
    for content in (b"", b"hello there", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
            atmnet.load(create(), path)
    model = create(num_classes=3)
    atmnet.save(model, path)
    with pytest.raises(ValueError, match=r"head\.fc\.bias is \[3\] in the checkpoint, \[1000\] in the model") as error:
        atmnet.load(create(), path)
    assert "reset_classifier" in str(error.value)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        atmnet.load(create(num_classes=3), path)
