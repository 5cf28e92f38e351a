"""The state of a run: what a checkpoint must hold to go on from it, and what it says of the model."""

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from atmnet_train import ade20k, imagenet
from atmnet_train.classification import model as classification_model
from atmnet_train.common import checkpoints
from atmnet_train.common.errors import UsageError
from atmnet_train.common.sampling import names_digest

SmallRun = Callable[..., None]
pytestmark = pytest.mark.usefixtures("fresh_accelerate", "no_curves")


def rows(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()]


@pytest.fixture
def finished(small_run: SmallRun, two_classes: Path, tmp_path: Path) -> Path:
    small_run(two_classes, tmp_path / "run")
    return tmp_path / "run"


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    state = torch.load(path, weights_only=True)
    state.pop("digest")
    change(state)
    torch.save(state, path)


def test_a_damaged_state_is_refused_with_a_way_on(finished: Path, small_run: SmallRun, two_classes: Path) -> None:
    whole = (finished / "last.pt").read_bytes()

    def refused(says: str) -> None:
        with pytest.raises(UsageError, match=says) as error:
            small_run(two_classes, finished, "--epochs", "3", "--resume", "auto")
        assert "--init-from" in str(error.value) and "best.safetensors" in str(error.value)

    for place in (0.2, 0.5, 0.8):
        flipped = bytearray(whole)
        flipped[int(place * len(whole))] ^= 8
        (finished / "last.pt").write_bytes(flipped)
        refused(r"last\.pt is (not a checkpoint that can be read, or a )?damaged")
    for name in ("model", "ema", "optimizer", "scaler", "meta"):
        (finished / "last.pt").write_bytes(whole)
        changed(finished / "last.pt", lambda state, name=name: state.pop(name))
        refused(f"it lacks {name}")
    for value in ({}, {"epoch": -1}, {"epoch": "x"}):
        (finished / "last.pt").write_bytes(whole)
        changed(finished / "last.pt", lambda state, value=value: state.update(progress=value and state["progress"] | value))
        refused("lacks its place in the run")
    first = "stem.0.bias"
    for change, says in (
        (lambda state: state["model"][first].fill_(math.nan), f"not finite: {first}"),
        (lambda state: state["ema"][first].fill_(math.inf), f"not finite: {first}"),
        (lambda state: state["meta"].update(classes=[1, 2]), r"lacks meta\.classes"),
        (lambda state: state["progress"].update(updates=0), "lacks its place"),
        (lambda state: state["progress"].update(best={"top1": math.nan}), "lacks its place"),
        (lambda state: state["progress"].update(best_epoch={}), "lacks its place"),
    ):
        (finished / "last.pt").write_bytes(whole)
        changed(finished / "last.pt", change)
        refused(says)
    for moment in (5, torch.zeros(3)):
        (finished / "last.pt").write_bytes(whole)
        changed(finished / "last.pt", lambda state, moment=moment: state["optimizer"]["state"][first].update(exp_avg=moment))
        with pytest.raises(UsageError, match=rf"the state of its optimizer is not this model's \({first}\.exp_avg\)"):
            small_run(two_classes, finished, "--epochs", "3", "--resume", "auto")
    (finished / "last.pt").write_bytes(b"")
    refused(r"damaged one .*: it is no file of torch\.save")
    # One from before there were digests, whose tables counted epochs from 0.
    (finished / "last.pt").write_bytes(whole)
    changed(finished / "last.pt", lambda state: (state["meta"]["order"].pop("names"), state["meta"].pop("processes")))
    table = rows(finished / "summary.csv")
    (finished / "summary.csv").write_text(
        "\n".join(",".join([str(n - 1) if n else row[0], *row[1:]]) for n, row in enumerate(table)) + "\n"
    )
    small_run(two_classes, finished, "--epochs", "3", "--resume", "auto")
    assert [row[0] for row in rows(finished / "summary.csv")] == ["epoch", "1", "2", "3"]
    assert [row[:2] for row in rows(finished / "steps.csv")[1:]] == [[str(n + 1), str(n // 2 + 1)] for n in range(6)]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["last"]["epoch"] == 3 and 1 <= summary["best"]["top1"]["epoch"] <= 3 and isinstance(summary["last"]["val_images"], int)


@pytest.mark.parametrize("resume", [[], ["--resume", "auto"]])
def test_a_run_without_its_state_is_not_written_over(resume: list[str], finished: Path, small_run: SmallRun, two_classes: Path) -> None:
    (finished / "last.pt").unlink()
    (finished / "last.pt").symlink_to("gone.pt")
    with pytest.raises(UsageError, match=r"holds a run without its last\.pt: best\.safetensors, best_ema\.safetensors"):
        small_run(two_classes, finished, *resume)


def test_a_run_that_is_done(finished: Path, small_run: SmallRun, two_classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_run(two_classes, finished, "--resume", "auto")
    assert "nothing is left to be trained" in capsys.readouterr().out


def test_other_images_are_another_order(finished: Path, small_run: SmallRun, two_classes: Path) -> None:
    changed(finished / "last.pt", lambda state: state["progress"].update(update=1, epoch=1))
    (two_classes / "train" / "cat" / "0.png").rename(two_classes / "train" / "cat" / "another.png")
    with pytest.raises(UsageError, match=r"middle of an epoch.*names \w{16} -> \w{16}"):
        small_run(two_classes, finished, "--resume", "auto")
    assert names_digest(["a", "b"]) == names_digest(["b", "a"]) != names_digest(["ab"])


def test_more_processes_than_before_are_told(
    finished: Path, small_run: SmallRun, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(finished / "last.pt", lambda state: state["meta"].update(processes=2))
    small_run(two_classes, finished, "--resume", "auto")
    assert "not by as many processes as before (2 -> 1)" in capsys.readouterr().out


def test_a_run_starts_with_the_arguments_of_its_checkpoint(finished: Path) -> None:
    changed(finished / "last.pt", lambda state: state["meta"]["recipe"].update(model_kwargs=["drop_rate=0.5"]))
    line = ["--data-dir", "data", "--model", "test_convnext", "--init-from", str(finished / "last.pt")]
    assert imagenet.parse(line).model.model_kwargs == ("drop_rate=0.5",)
    assert imagenet.parse([*line, "--model-kwargs", "drop_rate=0.1"]).model.model_kwargs == ("drop_rate=0.1",)
    line[-2] = "--backbone-weights"
    assert ade20k.parse(line).model.model_kwargs == ("drop_rate=0.5",)


def test_a_run_goes_on_with_the_arguments_that_its_checkpoint_gave_it(small_run: SmallRun, two_classes: Path, tmp_path: Path) -> None:
    small_run(two_classes, tmp_path / "first", "--model-kwargs", "depths=(1,1,1,1)")
    small_run(two_classes, tmp_path / "run", "--init-from", str(tmp_path / "first"))
    shutil.rmtree(tmp_path / "first")
    for resume in ("auto", str(tmp_path / "run")):
        small_run(two_classes, tmp_path / "run", "--resume", resume)
    assert "depths=(1,1,1,1)" in (tmp_path / "run" / "config.yaml").read_text()
    small_run(two_classes, tmp_path / "run", "--resume", "auto", "--init-from", str(tmp_path / "first"))


def test_an_evaluation_takes_no_choice_that_there_is_not(finished: Path) -> None:
    changed(finished / "last.pt", lambda state: state["meta"]["recipe"].update(interpolation="lanczos5"))
    with pytest.raises(UsageError, match=r"says interpolation 'lanczos5', which cannot be"):
        imagenet.parse(["--data-dir", "data", "--eval", str(finished / "last.pt")])


@pytest.mark.parametrize("loaded", [False, True])
def test_what_is_loaded_is_not_downloaded(loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(classification_model.timm, "create_model", lambda name, **given: made.update(given))
    settings = imagenet.parse(["--data-dir", "data", "--model-kwargs", "pretrained=True"]).model
    classification_model.build_model(settings, 2, loaded)
    assert made.get("pretrained", False) is not loaded


@pytest.mark.parametrize("said", [{"head": 5}, {"head": "semantic-fpn"}, {"head": "semantic-fpn", "neck": "fpn", "crop_size": "big"}])
def test_what_a_checkpoint_says_is_not_taken_blindly(said: dict[str, Any], tmp_path: Path) -> None:
    meta = {"model": "test_resnet", "recipe": {"model_kwargs": [], "crop_size": 64}} | said
    torch.save({"progress": {}, "model": {"w": torch.zeros(1)}, "meta": meta}, tmp_path / "last.pt")
    with pytest.raises(UsageError, match=r"last\.pt (does not say|is damaged, or not ours: it says) "):
        ade20k.parse(["--data-dir", "x", "--eval", str(tmp_path / "last.pt")])


def test_the_digest_covers_every_part_of_a_state(finished: Path) -> None:
    content = (finished / "last.pt").read_bytes()
    state = torch.load(io.BytesIO(content), weights_only=True)
    state["ema"]["head.fc.bias"][0] += 1
    torch.save(state, finished / "last.pt")
    with pytest.raises(UsageError, match="damaged: it does not hold what was written"):
        checkpoints.read_state(finished / "last.pt", verify=True)
    checkpoints.read_state(finished / "last.pt", verify=False)
