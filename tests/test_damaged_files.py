"""Checkpoints as others write them, and damaged ones: read alike by all, or refused with the file's name."""

import argparse
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atmnet
import pytest
import timm
import torch
from atmnet_train.common.errors import UsageError
from atmnet_train.common.weights import Weights, load_backbone, load_weights, read_weights
from official import to_official
from safetensors.torch import save_file
from torch import Tensor, nn

MODEL = "test_convnext"
SMALL = dict(depths=(1, 1), dims=(8, 16), mlp_ratios=(2, 2), share=(2, 4))
State = dict[str, Any]

CONTAINERS: dict[str, Callable[[State], State]] = {
    "bare": dict,
    "timm": lambda state: {"epoch": 3, "arch": MODEL, "state_dict": state, "args": argparse.Namespace(lr=1.0), "metric": 7.0},
    "published": lambda state: {"model": state, "optimizer": {}, "epoch": 1},
    "averaged": lambda state: {"state_dict": {}, "state_dict_ema": state},
}
PREFIXES = ("", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "backbone.")


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(MODEL, num_classes=3).eval()


def prefixed(state: State, prefix: str) -> State:
    """State as parallel and compiled models and mmseg name it; the last beside weights of heads."""
    heads = {f"{head}.conv.weight": torch.zeros(1) for head in ("decode_head", "auxiliary_head") if prefix == "backbone."}
    return {f"{prefix}{name}": value for name, value in state.items()} | heads


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_one_reader_for_all_who_read_weights(container: str, prefix: str, tmp_path: Path) -> None:
    model, ema, path = classifier(), container == "averaged", tmp_path / "weights.pth"
    torch.save(CONTAINERS[container](prefixed(model.state_dict(), prefix)), path)
    opened = atmnet.open_classifier(path, MODEL, ema)
    weights = read_weights(str(path), ema)
    started, backbone = timm.create_model(MODEL, num_classes=3), timm.create_model(MODEL, features_only=True)
    load_weights(started, weights)
    load_backbone(backbone, weights)
    for found in (opened, started):
        assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(backbone.stem_0.weight, model.stem[0].weight)


@pytest.mark.parametrize("keys", [("model", "model_ema"), ("state_dict", "state_dict_ema")], ids=" ".join)
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_averaged_weights_are_taken_unasked_of_published_files_alone(prefix: str, keys: tuple[str, str], tmp_path: Path) -> None:
    """Others too keep averages, and mean by their accuracy what they say."""
    path = tmp_path / "weights.pth"
    for state, name, published in (
        (to_official(timm.create_model("atmnet_t", **SMALL)), "norm.bias", True),
        (classifier().state_dict(), "head.fc.bias", False),
    ):
        averaged = {key: value + 1 for key, value in state.items()}
        torch.save(dict(zip(keys, (prefixed(state, prefix), prefixed(averaged, prefix)), strict=True)), path)
        for ema, expected in ((None, published), (True, True), (False, False)):
            found = read_weights(str(path), ema)
            assert (found.published, found.averaged) == (published, expected)
            assert torch.equal(found.state[name], (averaged if expected else state)[name])


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_published_weights_by_others_names(container: str, prefix: str, tmp_path: Path) -> None:
    model, other = (timm.create_model("atmnet_t", **SMALL) for _ in range(2))
    content = CONTAINERS[container](prefixed(to_official(model), prefix))
    torch.save(content, tmp_path / "weights.pth")
    for source in (content, tmp_path / "weights.pth"):
        atmnet.load_official(other, source, ema=container == "averaged")
        assert torch.equal(other.stages[1].blocks[0].mixer.fc_h.weight, model.stages[1].blocks[0].mixer.fc_h.weight)
        nn.init.zeros_(other.stages[1].blocks[0].mixer.fc_h.weight)


def test_a_bare_safetensors_of_a_compiled_model(tmp_path: Path) -> None:
    save_file(torch.compile(classifier(), backend="eager").state_dict(), tmp_path / "weights.safetensors")
    opened = atmnet.open_classifier(tmp_path / "weights.safetensors", MODEL)
    assert torch.equal(opened.stem[0].weight, classifier().stem[0].weight)


def refused(path: Path, says: str | None = None, model: str | None = MODEL) -> None:
    with warnings.catch_warnings(), pytest.raises(ValueError, match=says) as error:
        warnings.simplefilter("ignore")
        atmnet.open_classifier(path, model)
    assert path.name in str(error.value) and "weights_only" not in str(error.value) and "\n\n" not in str(error.value)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The content of whole files, by name."""
    folder, model = tmp_path_factory.mktemp("whole"), classifier()
    torch.save(model.state_dict(), folder / "zip.pth")
    torch.save(model.state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    atmnet.save(model, folder / "ours.safetensors", model=MODEL, num_classes=3)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("length", [0, 1, 9, 100, 5_000, 20_000, 60_000, -1])
@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "ours.safetensors"])
def test_files_that_break_off(name: str, length: int, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(files[name][:length])
    refused(tmp_path / name)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("name", ["zip.pth", "ours.safetensors"])
def test_a_flipped_bit(name: str, place: float, files: dict[str, bytes], tmp_path: Path) -> None:
    content = bytearray(files[name])
    content[int(place * len(content))] ^= 1
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "damaged")


CONTENTS: dict[str, Any] = {
    "nothing": None,
    "a list": [torch.zeros(2)],
    "names that are numbers": {0: torch.zeros(1)},
    "weights that are none": {"model": None},
    "text for weights": {"state_dict": "x"},
    "one level too many": {"model": {"model": {"w": torch.zeros(1)}}},
    "sparse": {"w": torch.eye(2).to_sparse()},
    "without values": {"w": torch.zeros(1, device="meta")},
    "a state without weights": {"progress": {}},
    "a state without meta": {"progress": {}, "model": {"w": torch.zeros(1)}},
    "meta that is a list": {"progress": {}, "model": {"w": torch.zeros(1)}, "meta": [1]},
    "a model by number": {"progress": {}, "model": {"w": torch.zeros(1)}, "meta": {"model": 5}},
    "a whole module": nn.Linear(2, 2),
    "a namespace": argparse.Namespace(model={}),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_contents_that_are_no_weights(content: str, tmp_path: Path) -> None:
    torch.save(CONTENTS[content], tmp_path / "some.pth")
    refused(tmp_path / "some.pth")


@pytest.mark.parametrize("change", [lambda value: value * float("nan"), lambda value: value.long(), lambda value: value + 0j])
def test_weights_of_another_kind(change: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    torch.save({name: change(value) for name, value in classifier().state_dict().items()}, tmp_path / "some.pth")
    refused(tmp_path / "some.pth", "weights that are not finite: stem.0.weight|dtype: stem.0.weight")


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(broken: float, tmp_path: Path) -> None:
    model = timm.create_model("atmnet_t", num_classes=3, **SMALL)
    torch.save(to_official(model) | {"head.bias": torch.full((3,), broken)}, tmp_path / "published.pth")
    model.head.fc.bias.data.fill_(broken)
    atmnet.save(model, tmp_path / "ours.safetensors")
    model.save_pretrained(tmp_path / "hub")
    (tmp_path / "hub" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "hub" / "pytorch_model.bin")  # as timm wrote them once
    for read in (
        lambda: atmnet.load(model, tmp_path / "ours.safetensors"),
        lambda: atmnet.load_official(model, tmp_path / "published.pth"),
        lambda: atmnet.ATMNet.from_pretrained(tmp_path / "hub"),
    ):
        with pytest.raises(ValueError, match=rf"{tmp_path}.* holds weights that are not finite: head\.(fc\.)?bias"):
            read()
    with pytest.raises(UsageError, match=r"published\.pth holds weights that are not finite: head\.bias"):
        read_weights(str(tmp_path / "published.pth"))


@pytest.mark.parametrize(
    "said",
    [
        {"model": "3"},
        {"model": ""},
        {"model": "hf-hub:a/b"},
        {"num_classes": '"three"'},
        {"num_classes": "-1"},
        {"num_classes": "true"},
        {"num_classes": "[" * 100_000},
        {"num_classes": "9" * 5_000},
        {"recipe": "[1]"},
        {"recipe": '{"model_kwargs": 5}'},
        {"recipe": '{"model_kwargs": ["wings=2"]}'},
        {"recipe": '{"model_kwargs": ["nonsense"]}'},
        {"classes": '"abc"'},
        {"classes": "[1, 2, 3]"},
        {"img_size": "[1, 2]"},
        {"digest": "0"},
    ],
    ids=lambda said: str(said)[:40],
)
def test_odd_metadata(said: dict[str, str], tmp_path: Path) -> None:
    save_file(classifier().state_dict(), tmp_path / "some.safetensors", metadata={"model": MODEL} | said)
    refused(tmp_path / "some.safetensors", model=None)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    timm.create_model("atmnet_t", num_classes=3, **SMALL).save_pretrained(folder)
    return folder


def changed(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: {
        name: value | values[name] if isinstance(values.get(name), dict) else values.get(name, value) for name, value in config.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda config: [config],
        lambda config: None,
        lambda config: {},
        changed(architecture=None),
        changed(architecture="no_such_model"),
        changed(architecture="../atmnet_t"),
        changed(model_args={"wings": 2}),
        changed(model_args={"depths": [1, 1, 1]}),
        changed(model_args=[1]),
        changed(num_classes="three"),
        changed(num_classes=-4),
        changed(pretrained_cfg=None),
        lambda config: config | {"label_names": 5},
        lambda config: '{"architecture": "atmnet_t", "architecture": "atmnet_s"}',
    ],
)
def test_odd_configs_of_a_folder(change: Callable[[dict[str, Any]], Any], hub: Path) -> None:
    config = (hub / "config.json").read_text()
    try:
        found = change(json.loads(config))
        (hub / "config.json").write_text(found if isinstance(found, str) else json.dumps(found))
        for read in (atmnet.open_classifier, atmnet.ATMNet.from_pretrained):
            with pytest.raises(ValueError, match=str(hub)):
                read(hub)
    finally:
        (hub / "config.json").write_text(config)


def test_weights_of_a_folder_are_verified(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((hub / "config.json").read_bytes())
    content = bytearray((hub / "model.safetensors").read_bytes())
    content[-3] ^= 4
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        atmnet.ATMNet.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"a": os.system}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be opened") as error:
        atmnet.ATMNet.from_pretrained(tmp_path)
    assert "weights_only" not in str(error.value)


def test_from_pretrained_takes_a_device_and_lenience(hub: Path, tmp_path: Path) -> None:
    assert atmnet.ATMNet.from_pretrained(hub, map_location="meta").stem.weight.is_meta
    (tmp_path / "config.json").write_bytes((hub / "config.json").read_bytes())
    state = atmnet.ATMNet.from_pretrained(hub).state_dict()
    del state["norm.bias"]
    save_file(state | {"more": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"norm\.bias"):
        atmnet.ATMNet.from_pretrained(tmp_path)
    assert torch.equal(atmnet.ATMNet.from_pretrained(tmp_path, strict=False).stem.weight, state["stem.weight"])


def test_names_that_are_no_paths() -> None:
    for name in ("x" * 5000, "a\0b", "/dev/null/x"):
        with pytest.raises(FileNotFoundError):
            atmnet.open_classifier(name, MODEL)


def test_a_whole_segmenter_is_no_foreign_backbone() -> None:
    """Segmenters of ours too begin with `backbone.`."""
    from atmnet.weights.reader import backbone_of, weights_in

    state = {"backbone.net.stem.weight": torch.zeros(1), "head.classifier.weight": torch.zeros(1)}
    assert weights_in(state, "x", ema=False) == backbone_of(state) == state
    assert Weights("x", state).num_classes is None
