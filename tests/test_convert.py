"""python -m atmnet convert: the authors' file to a folder that timm reads."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import atmnet
import pytest
import timm
import torch
from atmnet.__main__ import main
from atmnet.variants import VARIANTS
from atmnet.weights.places import from_folder
from official import to_official

SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), mlp_ratios=(1, 1, 1, 1), share=(2, 2, 2, 2))


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as the authors write it, of an ATMNet-T made small."""
    monkeypatch.setitem(VARIANTS, "atmnet_t", SMALL)
    torch.manual_seed(0)
    weights = to_official(timm.create_model("atmnet_t", num_classes=3))
    averaged = {name: value + 1 for name, value in weights.items()}
    torch.save({"model": weights, "model_ema": averaged, "args": Namespace(model="ActiveTiny")}, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


@pytest.mark.parametrize("flags,averaged", [([], True), (["--ema"], True), (["--no-ema"], False)])
def test_timm_reads_the_folder(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str], averaged: bool):
    out = tmp_path / "out"
    assert main(["convert", str(published), str(out), *flags]) == 0
    assert {path.name for path in out.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    printed = capsys.readouterr().out
    assert "atmnet_t, 3 classes" in printed and f'timm.create_model("local-dir:{out}", pretrained=True)' in printed
    expected = atmnet.load_official(timm.create_model("atmnet_t", num_classes=3), published, ema=averaged).state_dict()
    model = from_folder(out)  # as timm does, which before 1.0.30 needs help with safetensors
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    card = (out / "README.md").read_text()
    assert "| converted from | checkpoint.pth |" in card and f"| weights | {'averaged' if averaged else 'not averaged'} |" in card


def test_what_is_not_converted(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for arguments, message in (
        ([tmp_path / "none.pth", tmp_path / "out"], "there is no"),
        ([published, tmp_path / "full"], "is not empty"),
        ([published, tmp_path / "out", "--model", "atmnet-b"], "holds atmnet_t, not atmnet_b"),
    ):
        with pytest.raises(SystemExit):
            main(["convert", *map(str, arguments)])
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
