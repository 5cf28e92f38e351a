"""train/coco.py as a user runs it, with networks small enough for one core: it learns, stops, goes on, evaluates, and refuses bad data."""

import csv
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import atmnet
import numpy as np
import pytest
import timm
import torch
from atmnet.dense.detection import DETECTORS, create_detector
from atmnet.drawing.objects import colour
from atmnet_train import coco
from atmnet_train.coco import parse
from atmnet_train.common.checkpoints import Progress
from atmnet_train.common.errors import UsageError
from atmnet_train.common.task import Task
from atmnet_train.detection.schedule import make_scheduler
from coco_shapes import write_coco, write_split
from PIL import Image
from torch import nn

from atm_triton.backend import device_name

BACKBONE = {"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64)}
TINY = [
    *("--model", "atmnet-xt", "--model-kwargs", *(f"{name}={value}".replace(" ", "") for name, value in BACKBONE.items())),
    *("--min-size", "96", "--max-size", "128", "--batch-size", "4", "--workers", "0", "--report-to", "none", "--log-interval", "1"),
    *("--clip-grad", "1", "--drop-path", "0"),
]
SMALL = {"dim": 32, "rois_per_image": 32}
# Learning rate, updates and channels of the pyramid: RetinaNet's convolutions on it are all that it has.
BY_HEART = {"retinanet": (1e-3, 160, 64), "mask-rcnn": (2e-3, 65, 32), "cascade-mask-rcnn": (2e-3, 55, 32)}

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "small_detectors")


@pytest.fixture
def small_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "create_detector", partial(create_detector, **SMALL))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_coco(tmp_path_factory.mktemp("shapes"), train=9, val=5)
    write_split(root, "four", 4, seed=3, empty=False)
    return root


@pytest.fixture(scope="module")
def learned(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run in which a detector has learned four images by heart."""
    root = tmp_path_factory.mktemp("learned")

    def output(detector: str) -> Path:
        if not (root / detector).exists():
            lr, updates, dim = BY_HEART[detector]
            split = many_times(shapes, "four", updates)
            recipe = ["--lr", lr, "--epochs", 1, "--warmup-updates", 10, "--neck", "atmfpn" if detector == "mask-rcnn" else "fpn"]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(coco, "create_detector", partial(create_detector, **SMALL | {"dim": dim}))
                run(shapes, root / detector, "--detector", detector, *recipe, "--train-split", split, "--val-split", "four")
        return root / detector

    return output


def many_times(data: Path, split: str, times: int) -> str:
    """A split in which each image stands so often: its epoch is as many passes over the images, and is evaluated once."""
    content = json.loads((data / "annotations" / f"instances_{split}.json").read_text())
    for part, key in (("images", "id"), ("annotations", "image_id")):
        content[part] = [row | {key: row[key] + 1000 * time} for time in range(times) for row in content[part]]
    name = f"{split}-{times}"
    (data / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    (data / name).symlink_to(data / split)
    return name


def run(data: Path, output: Path, *flags: object) -> None:
    coco.main(line(data, output, *flags))


def line(data: Path, output: Path, *flags: object) -> list[str]:
    return [*TINY, "--data-dir", str(data), "--output", str(output), *map(str, flags)]


def rows(output: Path, name: str = "steps.csv") -> list[dict[str, float]]:
    with open(output / name, newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def metrics(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith((f"{prefix}box_", f"{prefix}mask_"))}


# Tests below need what Mask R-CNN learns. That the losses of the others fall too, test_detection.py tests in seconds.
@pytest.mark.parametrize(
    "detector", [pytest.param(name, marks=() if name == "mask-rcnn" else pytest.mark.exhaustive) for name in DETECTORS]
)
def test_each_detector_learns_four_images_by_heart(detector: str, learned: Callable[[str], Path]) -> None:
    output = learned(detector)
    steps, last = rows(output), rows(output, "summary.csv")[-1]
    assert len(steps) == BY_HEART[detector][1]
    assert sum(step["loss"] for step in steps[-10:]) < 0.5 * sum(step["loss"] for step in steps[:10])
    assert last["val_box_AP50"] >= 90 and last["val_images"] == 4
    assert last.get("val_mask_AP50", 100) >= 80
    assert ("val_mask_AP50" in last) == (detector != "retinanet")

    assert {path.name for path in output.iterdir()} >= {
        "last.pt",
        "best.safetensors",
        "summary.json",
        "curves.png",
        "batch.png",
        "detections.json",
    }
    classes = json.loads((output / "summary.json").read_text())["classes"]
    assert [row["class"] for row in classes] == ["square", "disc"]
    assert np.mean([row["box_AP"] for row in classes]) == pytest.approx(max(row["val_box_AP"] for row in rows(output, "summary.csv")))
    assert sorted(path.name for path in (output / "pictures").iterdir()) == [f"four-{number}.png" for number in range(4)]
    for path in (output / "pictures").iterdir():
        with Image.open(path) as picture:
            detections = picture.crop((0, 16, picture.width // 2, picture.height)).getcolors(maxcolors=2**20)
        assert {colour(0), colour(1)} <= {value for _, value in detections}


def test_an_evaluation_finds_what_the_training_found(
    learned: Callable[[str], Path], shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trained = learned("mask-rcnn")
    capsys.readouterr()
    plain = ["--data-dir", shapes, "--val-split", "four", "--workers", 0, "--report-to", "none", "--output", tmp_path, "--pictures", 1]
    coco.main(["--eval", str(trained), *map(str, plain)])  # which model it is, it says itself
    found = json.loads((tmp_path / "eval.json").read_text())
    assert metrics(found) == metrics(rows(trained, "summary.csv")[-1], "val_")
    assert found["detector"] == "mask-rcnn" and found["neck"] == "atmfpn" and found["min_size"] == [96] and found["images"] == 4
    assert json.loads((tmp_path / "detections.json").read_text()) == json.loads((trained / "detections.json").read_text())
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["four-0.png"]
    assert f"box AP {found['box_AP']:.2f}" in capsys.readouterr().out

    content = json.loads((shapes / "annotations" / "instances_four.json").read_text())
    content["categories"][0]["name"] = "ring"
    (shapes / "annotations" / "instances_rings.json").write_text(json.dumps(content))
    (shapes / "rings").symlink_to(shapes / "four")
    with pytest.raises(UsageError, match=r"was trained on 2 classes \(square, disc\), .*instances_rings.json has 2 \(square, ring\)"):
        coco.main(["--eval", str(trained), *map(str, plain), "--val-split", "rings"])


def test_a_stopped_run_goes_on_as_if_it_had_not_been(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ["--detector", "mask-rcnn", "--epochs", 2, "--warmup-updates", 2, "--lr", 1e-3, "--min-size", 64, 80, 96, "--drop-path", 0.3]
    recipe += ["--train-split", "train2017", "--pictures", 0]
    run(shapes, tmp_path / "whole", *recipe)

    original, calls = coco.make_batch_loss, []

    def stopping(*args: Any) -> Any:
        batch_loss = original(*args)

        def asked_to_stop(*args: Any) -> Any:
            calls.append(args)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
            return batch_loss(*args)

        return asked_to_stop

    monkeypatch.setattr(coco, "make_batch_loss", stopping)
    run(shapes, tmp_path / "parts", *recipe)
    assert len(rows(tmp_path / "parts")) == 3  # in the middle of the second epoch
    run(shapes, tmp_path / "parts", *recipe, "--resume", "auto")
    assert len(rows(tmp_path / "parts")) == 4 and rows(tmp_path / "parts") == rows(tmp_path / "whole")
    whole, parts = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    names = [name for name in rows(tmp_path / "whole", "summary.csv")[0] if not name.endswith("seconds")]
    first, second = ([[row[name] for name in names] for row in rows(tmp_path / run, "summary.csv")] for run in ("whole", "parts"))
    assert first == second


def test_two_processes_train_together_and_find_what_one_finds(
    learned: Callable[[str], Path], shapes: Path, tmp_path: Path, two_processes: Callable[..., None], capfd: pytest.CaptureFixture
) -> None:
    recipe = ["--neck", "atmfpn", "--batch-size", 2, "--epochs", 1, "--warmup-updates", 0, "--lr", 1e-5, "--workers", 1]
    trained = learned("mask-rcnn")
    two_processes(coco.main, line(shapes, tmp_path / "two", *recipe, "--init-from", trained))
    said = capfd.readouterr().out
    assert f"2 x {device_name(torch.device('cpu'))}" in said and "8 training and 5 validation images" in said
    assert len(rows(tmp_path / "two")) == 2
    last = json.loads((tmp_path / "two" / "summary.json").read_text())["last"]
    assert last["val_images"] == 5 and last["val_box_AP"] > 10
    run(shapes, tmp_path / "one", "--eval", tmp_path / "two" / "last.pt")
    assert metrics(json.loads((tmp_path / "one" / "eval.json").read_text())) == metrics(last, "val_")


@pytest.mark.parametrize(
    "flags", ["--mixed-precision bf16", "--grad-checkpointing --drop-path 0.2", "--keep-empty --grad-accum-steps 2 -b 2"]
)
def test_ways_to_train(flags: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(shapes, tmp_path, "--detector", "mask-rcnn", "--epochs", 1, "--warmup-updates", 0, "--pictures", 0, *flags.split())
    steps = rows(tmp_path)
    assert len(steps) == 2 and all(0 < value < 50 for step in steps for name, value in step.items() if name.startswith("loss"))
    said = capsys.readouterr().out
    assert ("9 training" if "--keep-empty" in flags else "8 training") in said
    assert "--lr 0.0001 is for a global batch of 16; this one is of 4" in said


@pytest.fixture
def planned(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Task]:
    """Plan what a run would train, without training it."""
    tasks: list[Task] = []
    monkeypatch.setattr(coco, "fit", lambda run, accelerator, task, resume: tasks.append(task))

    def plan(*flags: object) -> Task:
        run(shapes, tmp_path, "--epochs", 1, "--warmup-updates", 0, *flags)
        return tasks[-1]

    return plan


def test_a_backbone_starts_from_a_classifier(planned: Callable[..., Task], tmp_path: Path) -> None:
    classifier = timm.create_model("atmnet_xt", num_classes=5, **BACKBONE)
    atmnet.save(classifier, tmp_path / "classifier.safetensors", model="atmnet_xt", num_classes=5)
    task = planned("--backbone-weights", tmp_path / "classifier.safetensors")
    weights = task.model.state_dict()
    held = [name for name in classifier.state_dict() if not name.startswith(("head", "norm"))]
    assert held and all(torch.equal(weights[f"backbone.backbone.net.model.{name}"], classifier.state_dict()[name]) for name in held)
    with pytest.raises(UsageError, match="holds atmnet_xt, not --model atmnet_t"):
        planned("--backbone-weights", tmp_path / "classifier.safetensors", "--model", "atmnet-t")


@pytest.mark.parametrize("pretrained", [True, False])
def test_batch_norm_keeps_the_statistics_of_a_pretraining(pretrained: bool, planned: Callable[..., Task], tmp_path: Path) -> None:
    classifier = timm.create_model("test_resnet", num_classes=5)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    flags = ["--backbone-weights", tmp_path / "classifier.pth"] if pretrained else []
    task = planned("--model", "test_resnet", "--detector", "retinanet", "--model-kwargs", "drop_rate=0.0", *flags)
    norms = [module for module in task.model.backbone.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    task.batch_loss(task.model.train(), next(task.loader.batches(0, 0)), 0)
    assert norms and all(torch.equal(norm.running_mean, mean) == pretrained for norm, mean in zip(norms, before, strict=True))


def test_a_resumed_run_keeps_its_batch_norm_frozen(planned: Callable[..., Task], tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "classifier.pth")
    flags = ["--model", "test_resnet", "--detector", "retinanet", "--model-kwargs", "drop_rate=0.0"]
    assert not planned(*flags).meta["frozen_norms"]
    task = planned(*flags, "--backbone-weights", tmp_path / "classifier.pth")
    parts = {"model": {}, "ema": None, "optimizer": {"param_groups": [{}]}, "scaler": None, "progress": asdict(Progress())}
    torch.save(parts | {"meta": task.meta}, tmp_path / "last.pt")
    assert planned(*flags, "--resume", tmp_path / "last.pt").meta["frozen_norms"]


def test_a_whole_model_is_not_taken_for_a_classifier(planned: Callable[..., Task], tmp_path: Path) -> None:
    torch.save({"progress": {}, "model": {}, "meta": {"detector": "mask-rcnn"}}, tmp_path / "detector.pt")
    with pytest.raises(UsageError, match=r"holds a whole model, not a classifier: give it as --init-from"):
        planned("--backbone-weights", tmp_path / "detector.pt")


@pytest.mark.parametrize(("schedule", "epochs", "decays"), [("1x", 12, (8, 11)), ("3x", 36, (27, 33)), ("1x", 24, (16, 22))])
def test_the_rate_rises_over_updates_and_falls_after_epochs(schedule: str, epochs: int, decays: tuple[int, int]) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-4)
    settings = parse(["--data-dir", "x", "--schedule", schedule, "--epochs", str(epochs)])
    scheduler = make_scheduler(settings.schedule, 1e-4, optimizer, updates_per_epoch=100)

    def rate(update: int) -> float:
        scheduler.step_update(update)
        return optimizer.param_groups[0]["lr"]

    assert rate(0) == pytest.approx(1e-7) and rate(250) == pytest.approx(0.5 * 1e-4, rel=2e-3) and rate(500) == 1e-4
    for number, epoch in enumerate(decays):
        assert rate(100 * epoch - 1) == pytest.approx(1e-4 * 0.1**number)
        assert rate(100 * epoch) == pytest.approx(1e-4 * 0.1 ** (number + 1))


def test_the_recipes_are_the_papers(planned: Callable[..., Task]) -> None:
    short, long = (parse(["--data-dir", "coco", "--schedule", name]) for name in ("1x", "3x"))
    assert (short.schedule.epochs, short.data.min_size, short.data.max_size) == (12, (800,), 1333)
    assert (long.schedule.epochs, long.data.min_size, long.data.max_size) == (36, tuple(range(480, 801, 32)), 1333)
    assert (long.optimizer.lr, long.optimizer.weight_decay) == (1e-4, 0.05)
    task = planned("--min-size", 64, 96)
    assert tuple(task.model.transform.min_size) == (64, 96) and task.model.transform.max_size == 128
    decayed, exempt = ({p.ndim for p in group["params"]} for group in sorted(task.optimizer.param_groups, key=lambda g: -g["weight_decay"]))
    assert 1 not in decayed and exempt <= {1, 4}  # norms, biases, and the PEGs


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--model resnet_of_nothing", r"timm knows no such model"),
        ("--model vit_tiny_patch16_224 --model-kwargs drop_rate=0.0", r"--model vit_tiny_patch16_224 .*strides"),
        ("--model-kwargs wings=2", r"does not take .*wings"),
        ("--min-size 100 500 --max-size 400", r"--min-size 100 500: it must be at most --max-size 400"),
        ("--batch-size 64", r"8 training images do not fill one update of 64"),
        ("--warmup-updates 500 --epochs 2", r"--warmup-updates 500 leaves nothing of 2 epochs of 2 updates"),
        ("--min-size 1", r"--min-size 1: it must be at least 8"),
        ("--max-size 99999", r"--max-size 99999: it must be at most 16384"),
        ("--drop-path 1", r"--drop-path 1.0: it must be at most 0.9999"),
        ("--decay-epochs 5 2", r"--decay-epochs 5.0 2.0: they must rise"),
        ("--epochs 2 --decay-epochs 9", r"--decay-epochs 9.0: .* below --epochs 2"),
        ("--val-split .", r"--val-split '.' is no name of a split"),
        ("--pictures -1", r"--pictures -1: it must be at least 0"),
        ("--train-split nothing", r"has no nothing or images/nothing"),
        ("--val-split empty", r"instances_empty.json has no object that could be found on any of its 1 images"),
        ("--train-split empty", r"instances_empty.json has no object to learn from on any of its 1 images"),
        ("--val-split other", r"the categories of .*train2017.json \(square, disc\) and of .*other.json \(square\) differ"),
        ("--pretrained --init-from x", r"weights can come from one place"),
        ("--eval nowhere", r"there is no nowhere"),
        ("--eval classifier.safetensors", r"classifier.safetensors is not a detector of train/coco.py"),
    ],
)
def test_what_cannot_work_is_refused_before_training(flags: str, says: str, tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data", train=9, val=2)
    write_split(data, "empty", 1, seed=5)
    write_split(data, "other", 1, seed=6, empty=False)
    path = data / "annotations" / "instances_other.json"
    content = json.loads(path.read_text())
    content["categories"] = [row for row in content["categories"] if row["name"] == "square"]
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] == 3]
    path.write_text(json.dumps(content))
    atmnet.save(timm.create_model("atmnet_xt", num_classes=2, **BACKBONE), tmp_path / "classifier.safetensors", model="atmnet_xt")
    with pytest.raises(UsageError, match=says):
        run(data, tmp_path / "run", *flags.split())
    assert not (tmp_path / "run" / "last.pt").exists()
    with pytest.raises(UsageError, match=r"give the images: --data-dir DIR"):
        coco.main([])


def test_validation_images_that_are_trained_on(planned: Callable[..., Task], capsys: pytest.CaptureFixture[str]) -> None:
    planned("--val-split", "train2017")
    assert "9 images of" in (said := capsys.readouterr().out) and "instances_train2017.json are trained on too" in said


def test_boxes_that_cannot_be_learned_are_named(shapes: Path, tmp_path: Path, planned: Callable[..., Task], capsys: Any) -> None:
    data = write_coco(tmp_path / "data")
    for split in ("train2017", "val2017"):
        path = data / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["annotations"][1]["bbox"] = [-30, 0, 20, 20]
        path.write_text(json.dumps(content))
    planned("--data-dir", data)
    said = capsys.readouterr().out
    assert said.count("1 objects reach out of their image, where they are cut off") == 2
    box = r"annotation 2 of {split}-0.png, 112 x 96: box [-30, 0, 20, 20]"
    assert f"left out 1 objects without area in their image: {box.format(split='train2017')}" in said
    assert f"1 objects without area in their image, which COCO's evaluation counts like all others: {box.format(split='val2017')}" in said
