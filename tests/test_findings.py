"""Tables and pictures of what a training gave, beside its metrics."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from atmnet_train import imagenet
from atmnet_train.classification import pictures
from atmnet_train.classification.findings import Findings, measure
from atmnet_train.classification.images import Images
from atmnet_train.classification.loaders import Evaluator
from atmnet_train.classification.pictures import draw_confusion
from atmnet_train.common.broken import BrokenImages
from atmnet_train.common.pictures import Example, draw_grid
from atmnet_train.common.progress import ProgressLine
from atmnet_train.common.tables import read_csv, write_csv
from atmnet_train.common.trial import SHOWN, some_classes
from PIL import Image
from torch import nn

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_tables_of_findings() -> None:
    logits = torch.eye(4)[[0, 1, 1, 3, 3, 2]] * torch.tensor([9.0, 9, 3, 9, 5, 9])[:, None]
    found = measure(logits, torch.tensor([0, 1, 0, 2, 2, -1]), torch.arange(6)).known()
    assert found.metrics()["top1"] == 40 and found.metrics()["images"] == 5
    tables = found.tables("abcd".__getitem__, lambda number: f"{number}.png")
    assert tables["classes.csv"] == [
        {"class": "a", "top1": 50, "images": 2, "taken_for": "b"},
        {"class": "b", "top1": 100, "images": 1, "taken_for": ""},
        {"class": "c", "top1": 0, "images": 2, "taken_for": "d"},
    ]
    assert {(row["true"], row["predicted"]): row["images"] for row in tables["confusion.csv"]} == {
        ("a", "a"): 1, ("a", "b"): 1, ("b", "b"): 1, ("c", "d"): 2,
    }  # fmt: skip
    assert [(row["image"], row["true"], row["predicted"]) for row in tables["wrong.csv"]] == [
        ("3.png", "c", "d"), ("4.png", "c", "d"), ("2.png", "a", "b"),
    ]  # fmt: skip
    stream = Findings(found.figures, torch.cat([found.places[:, :2], torch.full((5, 1), -1)], 1))
    assert stream.tables("abcd".__getitem__, str)["wrong.csv"] == []


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [{"class": "007", "IoU": 12.5, "pixels": 3}, {"class": 'a,"\n$', "IoU": None, "pixels": 0}]
    write_csv(tmp_path / "rows.csv", rows)
    assert read_csv(tmp_path / "rows.csv") == rows
    write_csv(tmp_path / "none.csv", [])
    assert read_csv(tmp_path / "none.csv") == read_csv(tmp_path / "no file.csv") == []


@pytest.mark.parametrize("before", [{}, {"label": 1}])
def test_of_many_classes_the_terminal_shows_the_worst(before: dict[str, int]) -> None:
    rows = [before | {"class": f"{n}", "IoU": None if n == 7 else float(n), "pixels": n} for n in range(SHOWN + 10)]
    assert some_classes(rows[::-1]) == [row for row in rows if row["IoU"] is not None][:SHOWN]
    assert some_classes(rows[:SHOWN]) == rows[:SHOWN]


@pytest.mark.parametrize("classes", [2, 30, 31, 400])
def test_any_number_of_classes_is_drawn_legibly(classes: int, tmp_path: Path) -> None:
    pairs = [{"true": f"${i}$_", "predicted": f"${j % classes}$_", "images": 3} for i in range(classes) for j in (i, i + 1)]
    draw_confusion(tmp_path / "confusion.png", pairs)
    with Image.open(tmp_path / "confusion.png") as picture:
        assert 200 < picture.width < 2000 and 200 < picture.height < 2000


def test_without_scikit_learn_pairs_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pictures, "draw_matrix", None)
    draw_confusion(tmp_path / "confusion.png", [{"true": "a", "predicted": "b", "images": 3}, {"true": "a", "predicted": "a", "images": 1}])
    assert (tmp_path / "confusion.png").exists()


def test_pictures_of_earlier_weights_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "wrong.png").touch()
    write_csv(tmp_path / "wrong.csv", [])
    settings = imagenet.parse(["--batch-size", "2", "--img-size", "8", "--workers", "0"])
    images = Images([(Image.new("RGB", (8, 8)), 0)], {"a": 0})
    evaluator = Evaluator(images, settings, Accelerator(cpu=True), (0.5,) * 3, (0.5,) * 3, BrokenImages(0, 1))
    assert evaluator.draw(tmp_path, "") == [] and not (tmp_path / "wrong.png").exists()


def test_a_grid_of_images_of_any_shape(tmp_path: Path) -> None:
    shapes = [(8, 40), (40, 8), (1, 1), (300, 200)]
    draw_grid(tmp_path / "grid.png", [Example(np.zeros((*shape, 3), np.uint8), "$a\ntwo\udcff") for shape in shapes] * 9, "title")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > 1000


class Brightest(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * 5


def evaluate(output: Path) -> None:
    """On seven images, which two processes cannot share equally."""
    images = Images(
        [(Image.new("RGB", (8, 8), tuple(40 * ((n + c) % 5) for c in range(3))), n % 3) for n in range(7)], {"a": 0, "b": 1, "c": 2}
    )
    settings = imagenet.parse(["--batch-size", "2", "--img-size", "8", "--workers", "0"])
    accelerator = Accelerator(cpu=True)
    evaluator = Evaluator(images, settings, accelerator, (0.5,) * 3, (0.5,) * 3, BrokenImages(0, 7))
    found = evaluator({"": Brightest()})
    text = json.dumps([found, evaluator.tables("")])
    (output / f"{accelerator.num_processes}-{accelerator.process_index}.json").write_text(text)


def test_two_processes_find_what_one_finds(tmp_path: Path, two_processes: Callable[..., None]) -> None:
    two_processes(evaluate, tmp_path)
    evaluate(tmp_path)
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    assert one[0][""] == pytest.approx(first[0][""]) and one[0][""]["images"] == 7
    for name in ("classes.csv", "confusion.csv", "wrong.csv"):
        assert one[1][name] == first[1][name]
    assert sum(row["images"] for row in one[1]["confusion.csv"]) == 7


def run(data: Path, output: Path, *flags: str) -> None:
    line = "--model test_convnext --img-size 32 -b 2 --workers 0 --warmup-epochs 0 --lr 1e-3 --model-ema-decay 0"
    imagenet.main([*line.split(), "--data-dir", str(data), "--output", str(output), *flags])


def test_tensorboard_shows_one_run_with_pictures(two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over a resumption too, after which no point is lost or doubled."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    run(two_classes, output, "--epochs", "2")
    assert capsys.readouterr().out.splitlines()[-1] == f"next: python -m atmnet predict --checkpoint {output} PHOTOS"
    run(two_classes, output, "--epochs", "3", "--resume", "auto")
    runs = {path.parent for path in (output / "logs").rglob("*") if path.is_file()}
    assert runs == {output / "logs" / "tensorboard"}
    board = EventAccumulator(str(output / "logs" / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 16))  # every update of so short an epoch
    assert [event.step for event in board.Scalars("val/top1")] == [5, 10, 15]
    assert {"pictures/batch", "pictures/confusion"} <= set(board.Tags()["images"])
    assert [event.step for event in board.Images("pictures/batch")] == [0]

    run(two_classes, tmp_path / "eval", "--eval", str(output))
    report, summary = (json.loads(path.read_text()) for path in (tmp_path / "eval/eval.json", output / "summary.json"))
    assert report["classes"] == [row | {"taken_for": row["taken_for"] or ""} for row in summary["classes"]]
    assert (tmp_path / "eval" / "eval_confusion.png").exists()


@pytest.mark.parametrize(("total", "interval", "points"), [(15, 50, 15), (100, 50, 20), (5000, 50, 100)])
def test_a_curve_has_points_enough(total: int, interval: int, points: int) -> None:
    line = ProgressLine(total, 0, "epoch", 1, total, interval, shown=False)
    assert sum(line.advance(1.0, 1e-3) for _ in range(total)) == points
