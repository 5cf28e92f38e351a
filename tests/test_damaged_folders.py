"""Damaged folders of segmenters and detectors: refused with the file's name and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import atmnet
import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    atmnet.save_pretrained(atmnet.create_segmenter("test_efficientnet", num_classes=3), root / "segmenter")
    atmnet.save_pretrained(atmnet.create_detector("test_efficientnet", "retinanet", num_classes=3, dim=8), root / "detector")
    return root


def copied(folder: Path, to: Path, **changes: Any) -> Path:
    """The folder with other values in its config; those that are None are left out."""
    to.mkdir()
    config = json.loads((folder / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    (to / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return to


ODD = [
    ("segmenter", dict(head=None), r"config\.json does not say its head"),
    ("segmenter", dict(head="mask2former"), r"config\.json: cannot make its segmenter mask2former.*one of semantic-fpn, upernet"),
    ("segmenter", dict(head=5), r"config\.json is damaged, or not ours: it says head '5'"),
    ("segmenter", dict(task="depth"), r"config\.json is of the task 'depth'"),
    ("segmenter", dict(task=["segmentation"]), r"config\.json is of the task"),
    ("segmenter", dict(task=None), r"config\.json does not say which architecture"),
    ("segmenter", dict(model="no_such_model"), r"config\.json: cannot make its segmenter .*no such model"),
    ("segmenter", dict(num_classes=5), r"config\.json has 5 classes, and classes .* not as many"),
    ("segmenter", dict(num_classes=5, classes=None), r"model\.safetensors does not fit .*\n.*conv_seg\.weight is \[3"),
    ("segmenter", dict(mean=["a", "b", "c"]), r"config\.json says mean .*which cannot be"),
    ("segmenter", dict(std=[1, 0, 1]), r"config\.json says std .*which cannot be"),
    ("segmenter", dict(metrics=[1]), r"config\.json: metrics holds a list"),
    ("segmenter", dict(model_kwargs=["wings=2"]), r"config\.json: cannot make its segmenter"),
    ("segmenter", dict(swap=[{"changed": 3}]), r"config\.json: cannot swap its Segmenter as told"),
    ("segmenter", dict(swap=5), r"config\.json: cannot swap its Segmenter as told"),
    ("detector", dict(detector=None), r"config\.json does not say its detector"),
    ("detector", dict(detector="yolo"), r"config\.json: cannot make its detector yolo"),
    ("detector", dict(neck="pafpn"), r"config\.json: cannot make its detector .*there are fpn, atmfpn"),
    ("detector", dict(category_ids=[1, 2]), r"config\.json has 3 classes, and category_ids .* not as many"),
    ("detector", dict(min_size=[0]), r"config\.json is damaged, or not ours: it says min_size"),
]


@pytest.mark.parametrize("kind,changes,message", ODD, ids=[f"{kind} {list(changes.items())[-1]}" for kind, changes, _ in ODD])
def test_odd_configs(kind: str, changes: dict[str, Any], message: str, folders: Path, tmp_path: Path) -> None:
    folder = copied(folders / kind, tmp_path / "odd", **changes)
    with pytest.raises(ValueError, match=message) as error:
        atmnet.open_model(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("kind", ["segmenter", "detector"])
def test_damaged_weights(kind: str, folders: Path, tmp_path: Path) -> None:
    folder = copied(folders / kind, tmp_path / "damaged")
    path = folder / "model.safetensors"
    whole, weights = path.read_bytes(), atmnet.open_model(folder).state_dict()
    for content, message in (
        (whole[:-100], "is not a safetensors file that can be read"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "is damaged: it does not hold what was written"),
        (b"", "is not a safetensors file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path} {message}"):
            atmnet.open_model(folder)
    first = next(iter(weights))
    save_file(weights | {first: torch.full_like(weights[first], float("nan"))}, path)
    with pytest.raises(ValueError, match=rf"{path} holds weights that are not finite: {first}"):
        atmnet.open_model(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no {path}: the folder is not whole"):
        atmnet.open_model(folder)
