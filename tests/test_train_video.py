"""Training and evaluating classifiers of videos, and what is done with what comes of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atmnet
import pytest
import timm
import torch
from atmnet.__main__ import main as atmnet_main
from atmnet.clips import Clips, ClipView
from atmnet.exporting.formats import FORMATS
from atmnet.videos import open_video
from atmnet_train import video
from atmnet_train.classification.optimization import BatchLoss
from atmnet_train.clips.settings import VideoDataSettings
from atmnet_train.clips.videos import open_split
from atmnet_train.common.errors import RunError, UsageError
from atmnet_train.common.history import Table
from safetensors.torch import load_file
from video_files import write_video
from video_folders import SIDE, moving, write_folders

ARCHITECTURE = ["--model-kwargs", "depths=(1,1)", "dims=(8,16)", "mlp_ratios=(2,2)", "share=(2,4)"]
TINY: dict[str, Any] = dict(depths=(1, 1), dims=(8, 16), mlp_ratios=(2, 2), share=(2, 4))
LINE = (
    f"--model atmnet-xt-video --img-size {SIDE} --frames 4 -b 2 --workers 0 --report-to none --epochs 2 --warmup-epochs 0 --lr 2e-3 "
    "--hflip 0 --model-ema-decay 0 --log-interval 1"
)
Run = Callable[..., None]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def train(fresh_accelerate: None, no_curves: None, run_here: Run) -> Run:
    def run(data: Path, output: Path, *flags: object) -> None:
        run_here(video.main, *LINE.split(), *ARCHITECTURE, "--data-dir", data, "--output", output, *flags)

    return run


@pytest.fixture(scope="session")
def trained(clips: Path, tmp_path_factory: pytest.TempPathFactory, run_here: Run) -> Path:
    """A run with dense clips, two of a video in three crops each."""
    output = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--sampling", "dense", "--frame-stride", 1, "--clips", 2, "--crops", 3, "--epochs", 1]
    run_here(video.main, *LINE.split(), *ARCHITECTURE, "--data-dir", clips, "--output", output, *flags)
    return output


def losses(output: Path) -> list[float]:
    table = Table(output / "steps.csv")
    table.start(lambda row: True)
    return [row["loss"] for row in table.rows]


def test_it_resumes_exactly(clips: Path, tmp_path: Path, train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    train(clips, tmp_path / "whole")
    calls, loss = [], BatchLoss.__call__

    def stopping(self: BatchLoss, *arguments: Any) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 6:  # in the middle of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, *arguments)

    monkeypatch.setattr(BatchLoss, "__call__", stopping)
    train(clips, tmp_path / "parts")
    assert not json.loads((tmp_path / "parts/summary.json").read_text())["finished"] and len(losses(tmp_path / "parts")) == 6
    train(clips, tmp_path / "parts", "--resume", "auto")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 8
    whole, parts = (torch.load(tmp_path / name / "last.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(UsageError, match="is of another run: model atmnet_xt_video"):
        train(clips, tmp_path / "parts", "--resume", "auto", "--model", "atmnet-t-video", "--epochs", 3)


def test_an_evaluation_is_the_mean_of_its_views(clips: Path, trained: Path, tmp_path: Path, train: Run) -> None:
    train(clips, tmp_path / "eval", "--eval", trained)  # which says how it looks at videos
    found = json.loads((tmp_path / "eval/eval.json").read_text())
    model = atmnet.open_model(trained)
    described = atmnet.tasks.about(model)
    assert described.clips == Clips(4, "dense", 1, 2, 3) and described.classes == ["left", "right"]
    view = ClipView(described.clips, SIDE, 0.875, "bicubic", described.mean, described.std)
    expected = []
    for target, name in enumerate(described.classes):
        for file in sorted((clips / "val" / name).iterdir()):
            views = torch.cat([view(open_video(file), clip) for clip in range(2)])
            assert views.shape == (6, 3, 4, SIDE, SIDE)
            with torch.no_grad():
                mean = model(views).softmax(1).mean(0)
            expected.append((-mean[target].log().item(), mean.argmax().item() == target))
            shown = atmnet.predict(model, file).predictions
            assert {guess.index: guess.probability for guess in shown} == pytest.approx(dict(enumerate(mean.tolist())), rel=1e-5)
    assert found["images"] == 8 and found["clips"] == 2 and found["crops"] == 3
    assert found["loss"] == pytest.approx(sum(loss for loss, _ in expected) / 8, rel=1e-5)
    assert found["top1"] == pytest.approx(100 * sum(right for _, right in expected) / 8)


def test_a_folder_of_the_hub_says_how_videos_are_looked_at(clips: Path, trained: Path, tmp_path: Path) -> None:
    model, file = atmnet.open_model(trained), clips / "val/left/1.mp4"
    atmnet.save_pretrained(model, tmp_path / "hub")
    assert "2 of 4 frames, dense, each in 3 squares" in (tmp_path / "hub/README.md").read_text()
    again = atmnet.open_model(tmp_path / "hub")
    assert atmnet.tasks.about(again).clips == Clips(4, "dense", 1, 2, 3)
    assert atmnet.predict(again, file).to_dict() == atmnet.predict(model, file).to_dict()


def test_two_processes_find_what_one_does(clips: Path, trained: Path, tmp_path: Path, train: Run, two_processes: Run) -> None:
    """Clips of a video fall to either, and the last batch of 24 clips is not full."""
    flags = ["--eval", trained, "--clips", 3, "--val-batch-size", 5]
    train(clips, tmp_path / "one", *flags)
    line = [*LINE.split(), "--data-dir", clips, "--output", tmp_path / "two", *flags]
    two_processes(video.main, [*map(str, line)])
    one, two = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("one", "two"))
    assert two["images"] == one["images"] == 8 and two["top1"] == one["top1"] and two["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_predicting_one_thing_of_a_video(clips: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    write_video(tmp_path / "short.mp4", moving(4, 0, 3))
    moving(4, 0, 1)[0].save(tmp_path / "image.png")
    places = [str(clips / "val/left"), *(str(tmp_path / name) for name in ("broken.mp4", "short.mp4", "image.png"))]
    assert atmnet_main(["predict", *places, "--checkpoint", str(trained), "--json", "-", "--top", "1"]) == 1
    printed, errors = capsys.readouterr()
    found = json.loads(printed)
    assert len(found) == 7 and [len(one.get("predictions", ())) for one in found] == [1] * 4 + [0] * 3
    assert "4 videos · per video" in errors and "a clip's 4 frames" in errors and "which are told by endings such as .mp4" in errors
    model = atmnet.open_model(trained)
    assert atmnet.predict(model, clips / "val/left/0.mp4").draw().width >= SIDE
    with pytest.raises(SystemExit):
        atmnet_main(["predict", *places, "--checkpoint", str(trained), "--every", "2"])
    assert "--every 2 is of models of images: atmnet_xt_video takes a video for one thing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        atmnet_main(["offsets", "--checkpoint", str(trained), "--images", str(tmp_path / "image.png"), "--out", str(tmp_path / "offsets")])
    assert "this is a classifier of videos, and what is looked at here are images" in capsys.readouterr().err
    assert not (tmp_path / "offsets").exists()
    with pytest.raises(ValueError, match=r"call atmnet\.predict$"):
        atmnet.predict_video(model, clips / "val/left/0.mp4")
    with pytest.raises(ValueError, match="give it the path of one"):
        atmnet.predict(model, moving(4, 0, 1)[0])


def test_what_cannot_be_read_is_named_and_skipped(tmp_path: Path, train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_folders(tmp_path / "data")
    whole = (data / "train/left/0.mp4").read_bytes()
    (data / "train/left/0.mp4").write_bytes(whole[: len(whole) // 3])
    write_video(data / "train/right/1.mp4", moving(4, 0, 3))
    (data / "val/left/2.mp4").write_text("no video")
    train(data, tmp_path / "run", "--clips", 2, "--epochs", 1)
    said = capsys.readouterr().out
    for name, why in (
        ("train/left/0.mp4", ""),
        ("train/right/1.mp4", "it is too short: it has 3 of a clip's 4 frames"),
        ("val/left/2.mp4", "FFmpeg says: Invalid"),
    ):
        assert said.count(f"skipped: cannot read {data / name} ({why}") == 1
    assert json.loads((tmp_path / "run/summary.json").read_text())["last"]["val_images"] == 7
    with pytest.raises(RunError, match=r"3 videos cannot be read, more than --max-broken 0|[12] videos cannot be read"):
        train(data, tmp_path / "strict", "--max-broken", 0)


def write_list(path: Path, *rows: str, heading: str = "path,label") -> Path:
    path.write_text("\n".join((heading, *rows)) + "\n")
    return path


def test_lists(clips: Path, tmp_path: Path, train: Run) -> None:
    rows = [f"{split}/{name}/{number}.mp4,{name}" for split in ("train", "val") for name in ("right", "left") for number in range(4)]
    lists = {"--train-list": write_list(tmp_path / "train.csv", *rows[:8]), "--val-list": write_list(tmp_path / "val.csv", *rows[8:])}
    train(clips, tmp_path / "folders", "--epochs", 1)
    train(clips, tmp_path / "lists", "--epochs", 1, *(part for flag in lists.items() for part in flag))
    folders, listed = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("folders", "lists"))
    assert listed["last"]["val_images"] == folders["last"]["val_images"] == 8
    assert [row["class"] for row in listed["classes"]] == ["left", "right"]
    names = []
    spaced = [row.replace(",", " ,\t") for row in rows[:8]]
    for number, lines in enumerate((rows[:8], spaced[::-1], [rows[0].replace(",right", ",left"), *rows[1:8]])):
        listed = write_list(tmp_path / f"{number}.csv", *lines)
        videos = open_split(VideoDataSettings(data_dir=str(clips)), "train", str(listed), None).source
        names.append(video.labelled_names(videos))
    assert names[0] == names[1] and len({tuple(one) for one in names}) == 2  # whatever the order of the lines, but not the labels
    bad = write_list(tmp_path / "bad.csv", rows[0], "train/left/9.mp4,left", "", "train/left/1.mp4", "train/left/2.mp4,", rows[0])
    with pytest.raises(UsageError) as raised:
        train(clips, tmp_path / "none", "--train-list", bad)
    for part in (
        f"{bad} line 3: there is no {clips}/train/left/9.mp4",
        "line 5: train/left/1.mp4 is not",
        "line 6: train/left/2.mp4, is",
        "1 more",
    ):
        assert part in str(raised.value)
    for lines, message in (
        (write_list(tmp_path / "1.csv", rows[0], heading="file,class"), "line 1: the heading must be path,label, not file,class"),
        (write_list(tmp_path / "2.csv"), "2.csv lists no videos"),
        (write_list(tmp_path / "3.csv", *rows[:4]), "has a single class to train on"),
        (tmp_path / "4.csv", "4.csv is no list of videos that can be read"),
    ):
        with pytest.raises(UsageError, match=message):
            train(clips, tmp_path / "none", "--train-list", lines)
    other = write_list(tmp_path / "other.csv", "val/left/0.mp4,up")
    with pytest.raises(UsageError, match=r"other.csv has 1 classes that training does not know: up"):
        train(clips, tmp_path / "none", "--train-list", lists["--train-list"], "--val-list", other)


def test_what_does_not_fit_is_told_at_once(clips: Path, trained: Path, tmp_path: Path, train: Run) -> None:
    atmnet.save(timm.create_model("atmnet_xt", num_classes=2, **TINY), tmp_path / "images.safetensors", model="atmnet_xt")
    (tmp_path / "empty/train/left").mkdir(parents=True)
    for flags, message in (
        (["--crops", 2], "--crops 2: it must be 1, or 3"),
        (["--model", "test_convnext"], r"--model test_convnext does not take what was given|cannot take 1 clip of 4 x 32 x 32"),
        (["--model-kwargs", "frames=5", *ARCHITECTURE[1:]], "--model-kwargs frames=5: leave it out, as num_classes is 2, frames is 4"),
        (["--eval", tmp_path / "images.safetensors"], "is no classifier of videos that train/video.py wrote"),
        (["--data-dir", tmp_path / "empty"], "1 class folders of .* hold no videos that FFmpeg reads: left"),
        (["--batch-size", 3], "mixup pairs the images of a batch"),
        (["--init-from", tmp_path / "images.safetensors", "--model", "atmnet-t-video"], "holds atmnet_xt, not --model atmnet_t_video"),
    ):
        with pytest.raises(UsageError, match=message):
            train(clips, tmp_path / "none", *flags)
    with pytest.raises(UsageError, match="give the videos: --data-dir DIR"):
        video.main(["--output", str(tmp_path / "none")])


@pytest.mark.parametrize("classes", [2, 5])
def test_it_starts_from_a_network_of_images(
    classes: int, clips: Path, tmp_path: Path, train: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    still = timm.create_model("atmnet_xt", num_classes=classes, **TINY).eval()
    recipe = {"model_kwargs": ARCHITECTURE[1:]}
    atmnet.save(still, tmp_path / "images.safetensors", model="atmnet_xt", num_classes=classes, recipe=recipe)
    train(
        clips, tmp_path / "run", "--init-from", tmp_path / "images.safetensors", "--lr", 0, "--min-lr", 0, "--warmup-lr", 0, "--epochs", 1
    )
    said = "a network of images" + (", with a new classifier" if classes == 5 else "")
    assert f"starting from {tmp_path}/images.safetensors, {said}\n" in capsys.readouterr().out
    model = atmnet.open_model(tmp_path / "run")
    image = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        moving, expected = model(image[:, :, None].expand(-1, -1, 4, -1, -1)), still(image)
    if classes == 2:
        torch.testing.assert_close(moving, expected)
    assert torch.equal(load_file(tmp_path / "run/best.safetensors")["stem.weight"], still.stem.weight)
    train(clips, tmp_path / "next", "--init-from", tmp_path / "run", "--epochs", 1, "--num-classes", 4)
    assert f"starting from {tmp_path}/run/best.safetensors, with a new classifier\n" in capsys.readouterr().out
    train(clips, tmp_path / "eval", "--eval", tmp_path / "next")
    assert atmnet.open_model(tmp_path / "next").num_classes == 4


@pytest.mark.exhaustive  # a minute each; before that, kernels_tests/test_axes.py exports layers
@pytest.mark.parametrize("format", ["exported-program", "onnx"])
def test_it_is_exported_for_clips(format: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ("video.onnx" if format == "onnx" else "video.pt2")
    assert atmnet_main(["export", "--checkpoint", str(trained), "--format", format, "--out", str(path)]) == 0
    assert "It takes clips [B, 3, 4, H, W]" in capsys.readouterr().out
    file = FORMATS[format]
    metadata = file.metadata(path)
    assert metadata["task"] == "video-classification" and metadata["frames"] == "4" and metadata["classes"] == '["left", "right"]'
    assert (metadata["sampling"], metadata["frame_stride"]) == ("dense", "1")
    clips, model = torch.randn(3, 3, 4, 40, 56), atmnet.open_model(trained)
    with torch.no_grad():
        torch.testing.assert_close(file.open(path)(clips), model(clips), rtol=1e-4, atol=1e-5)
