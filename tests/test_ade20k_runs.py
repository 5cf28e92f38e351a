"""The segmentation program as a user runs it: it learns, stops and goes on, evaluates, draws, and spreads over processes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import atmnet
import atmnet.dense.heads
import numpy as np
import pytest
import timm
import torch
from ade_shapes import CLASSES, write_ade
from atmnet_train import ade20k
from atmnet_train.common.errors import RunError, UsageError
from atmnet_train.segmentation.settings import ScheduleSettings
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import batch_norm

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "narrow_segmenters")

TINY = ("depths=(1,1,1,1)", "dims=(16,32,32,32)", "mlp_ratios=(2,2,2,2)", "share=(2,4,4,4)")
FLAGS = [*("--model", "atmnet-xt", "--model-kwargs", *TINY, "--crop-size", "64", "--batch-size", "4", "--workers", "0")]
FLAGS += [*("--report-to", "none", "--warmup-updates", "0", "--pictures", "0", "--log-interval", "10")]
SHORT = [*FLAGS, "--crop-size", "32", "--iterations", "6", "--eval-interval", "3", "--lr", "1e-3"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = write_ade(tmp_path / "data")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def run(data: Path, output: Path, *flags: object) -> None:
    ade20k.main(line(data, output, *flags))


def line(data: Path, output: Path, *flags: object) -> list[str]:
    return [*map(str, flags), "--data-dir", str(data), "--output", str(output)]


def rows(output: Path, name: str = "steps.csv") -> list[dict[str, float]]:
    with open(output / name, newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def column(output: Path, name: str, file: str = "steps.csv") -> list[float]:
    return [row[name] for row in rows(output, file)]


@pytest.mark.parametrize("head", ["semantic-fpn", pytest.param("upernet", marks=pytest.mark.exhaustive)])
def test_it_overfits_four_images_and_eval_says_what_training_said(
    head: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    flags = ["--head", head, "--no-aug", "--lr", "3e-3", "--val-split", "training", "--iterations", 100, "--eval-interval", 50]
    run(data, output, *FLAGS, *flags)
    losses = column(output, "loss")
    assert len(losses) == 100 and sum(losses[-5:]) < 0.25 * sum(losses[:5])
    assert column(output, "lr")[0] > 10 * column(output, "lr")[-1] > 0
    last = rows(output, "summary.csv")[-1]
    assert last["val_mIoU"] >= 90
    summary = json.loads((output / "summary.json").read_text())
    assert summary["finished"] and {"curves.png", "batch.png", "classes.csv"} <= {path.name for path in output.iterdir()}
    assert np.mean([row["IoU"] for row in summary["classes"]]) == pytest.approx(summary["best"]["mIoU"]["value"])

    assert "images/training holds the training images too" in capsys.readouterr().out
    run(data, tmp_path / "eval", "--eval", output, "--val-split", "training", "--workers", 0, "--pictures", 2)
    said = capsys.readouterr().out
    assert all(name in said for name in CLASSES)
    result = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert result["mIoU"] == max(column(output, "val_mIoU", "summary.csv"))
    assert [row["class"] for row in result["classes"]] == CLASSES and result["images"] == 4
    assert {path.name for path in (tmp_path / "eval" / "pictures").iterdir()} == {"training_0.png", "training_1.png"}
    with Image.open(tmp_path / "eval" / "pictures" / "training_0.png") as picture:
        assert picture.width > 1000
    with open(tmp_path / "eval" / "eval_classes.csv", newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == CLASSES

    run(data, tmp_path / "multi", "--eval", output, "--val-split", "training", "--workers", 0, "--pictures", 0, "--multi-scale")
    multi = json.loads((tmp_path / "multi" / "eval.json").read_text())
    assert multi["multi_scale"] and multi["mIoU"] != result["mIoU"] and multi["mIoU"] > 40


@pytest.mark.parametrize("head", ["semantic-fpn", "upernet"])
@pytest.mark.usefixtures("no_curves")
def test_interrupted_it_goes_on_exactly(head: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with everything random: augmentation, stochastic depth, dropout."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [*SHORT, "--head", head, "--drop-path", 0.3, "--checkpoint-steps", 2]
    run(data, whole, *flags)

    left, loss = iter(range(5)), ade20k.batch_loss
    with monkeypatch.context() as patch:
        patch.setattr(ade20k, "batch_loss", lambda *args: (next(left), loss(*args))[1])
        with pytest.raises(StopIteration):
            run(data, parts, *flags)
    assert torch.load(parts / "last.pt", weights_only=True)["progress"]["updates"] == 4
    with pytest.raises(UsageError, match=r"last.pt is of another run: eval_interval 3 -> 2"):
        run(data, parts, *flags, "--resume", "auto", "--eval-interval", 2)
    run(data, parts, *flags, "--resume", "auto")
    assert rows(parts) == rows(whole) and len(set(column(whole, "loss"))) == 6
    assert column(parts, "val_mIoU", "summary.csv") == column(whole, "val_mIoU", "summary.csv")
    if head == "upernet":
        step = rows(whole)[0]
        assert step["loss"] == pytest.approx(step["loss_head"] + step["loss_auxiliary"], rel=1e-4)
        assert step["loss_auxiliary"] == pytest.approx(0.4 * step["loss_head"], rel=0.3)
    then, now = (torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (whole, parts))
    assert all(torch.equal(then[name], now[name]) for name in then)


def by_running_statistics(norm: torch.nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    return batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def test_two_processes_are_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_processes: Callable[..., None]) -> None:
    """The same losses and scores, though the processes validate three images, one more than the other."""
    flags = [*SHORT, "--neck", "atmfpn", "--drop-path", "0"]
    monkeypatch.setattr(atmnet.dense.heads, "DROPOUT", 0.0)  # processes draw their own
    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", by_running_statistics)  # and on CPUs have statistics of their own
    run(data, tmp_path / "one", *flags)
    two_processes(ade20k.main, line(data, tmp_path / "two", *flags, "--batch-size", 2, "--pictures", 3))
    assert column(tmp_path / "two", "loss") == pytest.approx(column(tmp_path / "one", "loss"), rel=1e-4)
    for metric in ("val_mIoU", "val_mAcc", "val_aAcc"):
        ours, theirs = (column(tmp_path / name, metric, "summary.csv") for name in ("two", "one"))
        assert ours == pytest.approx(theirs, abs=0.02)  # of 20,000 pixels, a few at most flip by rounding
    assert len(list((tmp_path / "two" / "pictures").iterdir())) == 3


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_statistics_are_shared_on_gpus(device: str) -> None:
    settings = ade20k.parse(["--data-dir", "x", *FLAGS, "--batch-size", "1"])
    model = ade20k.build_model(settings, 3)
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    found = ade20k.with_shared_statistics(model, settings, SimpleNamespace(num_processes=8, device=torch.device(device)))
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in found.modules()) == (norms if device == "cuda" else 0)
    assert norms == 7


def test_a_backbone_starts_from_a_classifier(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"depths": (1, 1, 1, 1), "dims": (16, 32, 32, 32), "mlp_ratios": (2, 2, 2, 2), "share": (2, 4, 4, 4)}
    classifier = timm.create_model("atmnet_xt", num_classes=7, **sizes)
    atmnet.save(classifier, tmp_path / "classifier.safetensors", model="atmnet_xt", num_classes=7)
    with pytest.raises(UsageError, match=r"classifier\.safetensors is not a model of train/ade20k\.py"):
        run(data, tmp_path / "eval", "--eval", tmp_path / "classifier.safetensors")
    flags = [*SHORT, "--iterations", 1, "--eval-interval", 1, "--lr", 0, "--grad-checkpointing"]
    run(data, tmp_path / "run", *flags, "--backbone-weights", tmp_path / "classifier.safetensors")
    assert "starting from" in capsys.readouterr().out
    state = load_file(tmp_path / "run" / "best.safetensors")
    assert torch.equal(state["backbone.net.model.stem.weight"], classifier.stem.weight)
    run(data, tmp_path / "next", *flags, "--init-from", tmp_path / "run")
    again = load_file(tmp_path / "next" / "best.safetensors")
    assert all(torch.equal(state[name], again[name]) for name in state if ".bn." not in name)  # whose statistics go on


def test_the_recipes_are_the_papers() -> None:
    fpn = ade20k.parse(["--data-dir", "x"])
    assert (fpn.data.batch_size, fpn.optimizer.lr, fpn.optimizer.weight_decay) == (4, 2e-4, 0.01)
    assert fpn.schedule == ScheduleSettings(iterations=40_000, eval_interval=4000, warmup_updates=0, power=0.9)
    assert (fpn.model.neck, fpn.data.crop_size, fpn.run.output) == ("fpn", 512, "output/atmnet_t-semantic-fpn-fpn")
    upernet = ade20k.parse(["--data-dir", "x", "--head", "upernet", "--lr", "1e-4"])
    assert (upernet.data.batch_size, upernet.optimizer.lr, upernet.model.neck) == (2, 1e-4, None)
    assert upernet.schedule == ScheduleSettings(iterations=160_000, eval_interval=16_000, warmup_updates=1500, power=1.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
    scheduler = ade20k.make_scheduler(upernet.schedule, 1e-4, optimizer)
    found = []
    for update in (0, 750, 1500, 80_000, 159_999):
        scheduler.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([1e-10, 5e-5, 1e-4 * (1 - 1500 / 160_000), 5e-5, 1e-4 / 160_000], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--head upernet --neck atmfpn", r"--neck atmfpn: UperNet has its own pyramid"),
        ("--iterations 10 --eval-interval 4", r"--iterations 10 is no multiple of --eval-interval 4"),
        ("--warmup-updates 6", r"--warmup-updates 6 leaves nothing of --iterations 6"),
        ("--multi-scale", r"--multi-scale is for --eval CKPT"),
        ("--num-classes 300", r"--num-classes 300: .* at most 254"),
        ("--num-classes 2", r"--num-classes 2, but the data names 3 classes"),
        ("--crop-size 1", r"--crop-size 1: it must be at least 2"),
        ("--crop-size 99999", r"--crop-size 99999: it must be at most 16384"),
        ("--power 1e9", r"--power 1000000000.0: it must be at most 10000"),
        ("--drop-path 1", r"--drop-path 1.0: it must be at most 0.9999"),
        ("--train-split .", r"--train-split '.' is no name of a split"),
        ("--head upernet --batch-size 1", r"--batch-size 1: UperNet normalises over the images of a batch"),
        ("--batch-size 1", r"--batch-size 1 --crop-size 32: the coarsest map of such an image is 1 x 1"),
        ("--model vit_tiny_patch16_224", r"vit_tiny_patch16_224"),
        ("--model nothing", r"--model nothing: timm knows no such model"),
        ("--eval nowhere", r"there is no nowhere"),
        ("--eval nowhere --resume auto", r"there is no nowhere"),
        ("--train-split test", r"there is no folder .*images/test"),
    ],
)
def test_flags_that_cannot_work(flags: str, says: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        run(data, tmp_path / "run", *SHORT, *flags.split())
    assert not (tmp_path / "run" / "last.pt").exists()


def test_what_an_evaluation_refuses(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"give the images: --data-dir DIR with DIR/images"):
        ade20k.main([])
    flags = [*SHORT, "--iterations", 1, "--eval-interval", 1]
    run(data, tmp_path / "run", *flags)
    evaluation = ["--eval", tmp_path / "run", "--workers", 0]
    with pytest.raises(UsageError, match=r"--eval CKPT names the weights itself"):
        run(data, tmp_path / "eval", *evaluation, "--pretrained")
    (data / "classes.txt").write_text("earth\ndisc\nsquare")
    with pytest.raises(UsageError, match=r"was trained on other classes: ground, disc, square; here earth, disc, square"):
        run(data, tmp_path / "eval", *evaluation)
    (data / "classes.txt").unlink()
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    del state["digest"]
    state["model"] = {name: 1e30 * value if value.is_floating_point() else value for name, value in state["model"].items()}
    torch.save(state, tmp_path / "huge.pt")
    with pytest.raises(RunError, match=r"huge\.pt: what the network makes of the images is not finite"):
        run(data, tmp_path / "eval", "--eval", tmp_path / "huge.pt", "--workers", 0)
    for path in data.glob("images/validation/*"):
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(RunError, match=r"none of the 3 images can be read"):
        run(data, tmp_path / "eval", *evaluation)
