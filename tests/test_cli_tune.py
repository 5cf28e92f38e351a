"""python -m atmnet tune"""

from __future__ import annotations

import re

import pytest
import torch
from atmnet.__main__ import main
from atmnet.cli import tune as command

from atm_triton.tuning import tables
from atm_triton.tuning.tune import Tuned


@pytest.fixture
def made_up_gpu(monkeypatch, tmp_path):
    """The CPU passes for a GPU; returns what `tune` was asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(tables, "gpu_slug", lambda device: "made-up")
    for folder in ("USER_CACHE", "SHIPPED"):
        monkeypatch.setattr(tables, folder, tmp_path / folder)
    asked = []

    def tune(model, images, **options):
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        asked.append((type(model).__name__, len(model.stages), model.training, tuple(images.shape), autocast, options))
        return Tuned({"kernel": {"BLOCK_N": 1}})

    monkeypatch.setattr(command, "tune", tune)
    tables.forget_tables()
    yield asked
    tables.forget_tables()


def test_every_resolution_is_tuned(made_up_gpu, capsys):
    line = "tune --model atmnet-xt --resolution 32 64 32x48 --batch 2"
    assert main(line.split()) == 0
    options = {"backward": True, "force": False, "export": None}
    shapes = [(2, 3, 32, 32), (2, 3, 64, 64), (2, 3, 32, 48)]
    assert made_up_gpu == [("ATMNet", 4, True, shape, torch.bfloat16, options) for shape in shapes]
    printed = capsys.readouterr().out
    assert "atmnet_xt, 2 x 32 x 48, bf16" in printed and "0 kernels and shapes tuned" in printed


def test_clips_are_tuned_for(made_up_gpu):
    assert main(["tune", "--model", "atmnet-xt-video", "--resolution", "32", "--batch", "2", "--frames", "4"]) == 0
    assert [asked[3] for asked in made_up_gpu] == [(2, 3, 4, 32, 32)]


@pytest.mark.parametrize(("export", "file"), [("--export", "SHIPPED/made-up.json"), ("--export here.json", "here.json")])
def test_options(made_up_gpu, tmp_path, export, file):
    assert main(f"tune --model ATMNet-XT --resolution 32 --batch 1 --dtype fp32 --inference --force {export}".split()) == 0
    ((_, _, training, _, autocast, options),) = made_up_gpu
    assert not training and autocast is None
    assert options | {"export": str(options["export"]).removeprefix(f"{tmp_path}/")} == {"backward": False, "force": True, "export": file}


def test_a_model_without_our_operators(made_up_gpu, monkeypatch, capsys):
    monkeypatch.setattr(command, "tune", lambda *args, **kwargs: Tuned())
    assert main(["tune", "--model", "test_convnext", "--resolution", "32", "--batch", "1"]) == 1
    assert "test_convnext has none of the operators of this library" in capsys.readouterr().out


def test_a_batch_that_does_not_fit(made_up_gpu, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(command, "tune", full)
    with pytest.raises(SystemExit, match="2"):
        main(["tune", "--model", "atmnet-xt", "--resolution", "32", "--batch", "7"])
    assert "--batch 7 at 32 x 32 does not fit this GPU: give a smaller one (CUDA out of memory)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("x.json is not a table")], ids=["OSError", "ValueError"]
)
def test_a_table_that_cannot_be_read_or_written(made_up_gpu, monkeypatch, capsys, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(command, "tune", fails)
    with pytest.raises(SystemExit, match="2"):
        main(["tune", "--model", "atmnet-xt", "--resolution", "32", "--batch", "1"])
    assert capsys.readouterr().err.endswith(f"error: {error}\n")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--model atmnet-xt --resolution 224", r"there is no GPU here that torch .* can use"),
        ("--model atmnet-q --resolution 224", r"--model atmnet_q: timm knows no such model; it knows .*atmnet_l"),
        ("--model nothing_like_it --resolution 224", r"--model nothing_like_it: timm knows no such model"),
        ("--model atmnet-xt --resolution big", r"must be such as 512, or 600x800 for height x width, at least 3 pixels, got 'big'"),
        ("--model atmnet-xt --resolution 224x0", r"at least 3 pixels, got '224x0'"),
        ("--model atmnet-xt --resolution 224 --batch 0", r"at least 1, got '0'"),
        ("--model atmnet-xt --resolution 224 --dtype fp64", r"invalid choice: 'fp64'"),
        ("--model atmnet-xt", r"required: --resolution"),
    ],
)
def test_what_cannot_work_is_said_at_once(flags, says, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "tune", lambda *args, **kwargs: pytest.fail("it tunes"))
    with pytest.raises(SystemExit, match="2"):
        main(["tune", *flags.split()])
    assert re.search(says, capsys.readouterr().err)
