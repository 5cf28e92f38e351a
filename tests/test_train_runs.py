"""The training program as a user runs it: real processes, real files, killed, stopped, resumed and spread over processes.

What is compared with them runs in this process: a start of Python takes longer than most of these runs.
"""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from atmnet_train import imagenet
from atmnet_train.common.sampling import GlobalBatchSampler
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from timm.data import create_dataset

ROOT = Path(__file__).parents[1]
PROGRAM = str(ROOT / "train" / "imagenet.py")
SHAPES = {"circle": ImageDraw.ImageDraw.ellipse, "square": ImageDraw.ImageDraw.rectangle}
COLOURS = {"blue": (40, 60, 220), "red": (220, 50, 40)}
# A network of 0.2 M parameters, 16 images per update; no randomness between processes, so that their number must not matter.
TINY = [
    *("--model", "test_convnext", "--img-size", "32", "--batch-size", "16", "--workers", "1", "--lr", "2e-3", "--warmup-epochs", "0"),
    *("--cooldown-epochs", "0", "--report-to", "none", "--sched-on-updates", "--log-interval", "1"),
]
# One of ours instead, that makes offsets in three blocks and takes them over in one.
ATMNET = ["--model", "atmnet-xt", "--model-kwargs", "depths=(1,3)", "dims=(16,32)", "mlp_ratios=(2,2)", "share=(2,4)", "period=1"]
STILL = ["--mixup", "0", "--cutmix", "0", "--drop-path", "0"]
Run = Callable[..., None]


def draw_images(root: Path, per_class: int, seed: int = 0) -> Path:
    """Four classes, the combinations of two shapes and two colours; of odd number in val, so that last batches are uneven."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", per_class), ("val", per_class // 4 + 1)):
        for shape, draw in SHAPES.items():
            for colour, rgb in COLOURS.items():
                folder = root / split / f"{colour}_{shape}"
                folder.mkdir(parents=True)
                for number in range(count):
                    image = Image.fromarray(rng.integers(0, 90, (40, 40, 3), dtype=np.uint8))
                    x, y, size = rng.integers(2, 12, 3)
                    draw(ImageDraw.Draw(image), (x, y, x + 14 + size, y + 14 + size), fill=rgb)
                    image.save(folder / f"{number}.jpg")
    return root


def environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "models"), os.environ.get("PYTHONPATH", "")]
    # One thread: sums are then the same for every number of processes, and the cores are shared with other tests.
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}


ACCELERATE = ["-m", "accelerate.commands.launch", "--cpu"]


def command(*args: object, processes: int = 1, launcher: list[str] | None = None) -> list[str]:
    launch = [sys.executable, *(launcher or [])]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launch, PROGRAM, *map(str, args)]


def run(*args: object, processes: int = 1, launcher: list[str] | None = None, status: int = 0) -> str:
    line = command(*args, processes=processes, launcher=launcher)
    result = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == status, f"exit status {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout + result.stderr


def rows(output: Path, name: str = "steps.csv") -> list[dict[str, float]]:
    with open(output / name, newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in rows(output)]


def start_and_wait(output: Path, update: int, *args: object, processes: int = 1) -> subprocess.Popen:
    """Starts a run and returns once it has done that many updates."""
    process = subprocess.Popen(
        command(*args, "--output", output, processes=processes),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        # The file may be in the middle of a line: count line ends.
        if (output / "steps.csv").exists() and (output / "steps.csv").read_text().count("\n") > update:
            return process
        time.sleep(0.02)
    if process.poll() is None:
        kill(process)
    raise AssertionError(f"no update {update} in {output}")


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the process and to all that it started: a launcher's processes are in sessions of their own and would go on."""
    pids = [process.pid]
    for pid in pids:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        pids += [int(child) for child in children.read_text().split()] if children.exists() else []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"), per_class=36)


@pytest.fixture(scope="module")
def recipe(images: Path) -> list[object]:
    """Settings with everything random switched on: mixup, RandAugment, erasing, stochastic depth, EMA, accumulation."""
    return [
        *TINY,
        "--data-dir",
        images,
        "--epochs",
        3,
        "--drop-path",
        0.2,
        "--batch-size",
        8,
        "--grad-accum-steps",
        2,
        "--model-ema-warmup",
    ]


@pytest.fixture(scope="module")
def uninterrupted(recipe: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    run(*recipe, "--output", output)
    return output


def test_a_run_leaves_its_files(uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir()}
    assert {"last.pt", "best.safetensors", "best_ema.safetensors", "steps.csv", "summary.csv", "summary.json", "curves.png"} <= names
    assert {f"{prefix}{name}" for prefix in ("", "ema_") for name in ("classes.csv", "confusion.png", "wrong.png")} | {"batch.png"} <= names
    assert not [name for name in names if ".partial" in name]
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["finished"] and summary["updates"] == 27 and summary["epochs"] == 3
    epochs = rows(uninterrupted, "summary.csv")
    assert summary["best"]["top1"]["value"] == max(row["val_top1"] for row in epochs)
    assert epochs[0]["val_images"] == 40
    assert np.mean([row["top1"] for row in summary["classes"]]) == pytest.approx(summary["best"]["top1"]["value"])
    assert epochs[1]["train_loss"] == pytest.approx(np.mean(losses(uninterrupted)[9:18]))


def test_ema_has_clean_names_and_moves(uninterrupted: Path) -> None:
    state = torch.load(uninterrupted / "last.pt", weights_only=True)
    assert list(state["ema"]) == list(state["model"])
    assert not [name for name in state["ema"] if name.startswith(("module.", "_orig_mod."))]
    assert any(not torch.equal(state["ema"][name], state["model"][name]) for name in state["model"])
    assert list(load_file(uninterrupted / "best_ema.safetensors").keys()) == sorted(state["ema"])


def assert_stopped_cleanly(output: Path, said: str, updates: int) -> None:
    assert f"go on with the same command and --resume {output}" in said, said[-3000:]
    saved = torch.load(output / "last.pt", weights_only=True)["progress"]
    assert 3 <= saved["updates"] < updates
    assert rows(output)[-1]["update"] == saved["updates"]
    assert not json.loads((output / "summary.json").read_text())["finished"]


def test_stopped_and_killed_in_the_middle_of_an_epoch_it_resumes_exactly(recipe: list[object], uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start_and_wait(output, 3, *recipe)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.killpg(process.pid, number)  # as a cluster does: the data-loading workers get it too
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 0, said[-3000:]
    assert_stopped_cleanly(output, said, 27)

    kill(start_and_wait(output, 15, *recipe, "--checkpoint-steps", 2, "--resume", output))
    saved = torch.load(output / "last.pt", weights_only=True)["progress"]
    assert saved["updates"] < 27 and saved["update"] > 0, "killed too late to test anything"
    # Another number of workers: whoever loads a sample draws the same random numbers.
    said = run(*recipe, "--output", output, "--resume", "auto", "--workers", 0)
    assert f"after update {saved['updates']}" in said
    assert losses(output) == losses(uninterrupted)
    assert [row["update"] for row in rows(output)] == list(range(1, 28))
    then, now = (torch.load(folder / "last.pt", weights_only=True) for folder in (uninterrupted, output))
    for part in ("model", "ema"):
        assert all(torch.equal(then[part][name], now[part][name]) for name in then[part])
    columns = ("val_loss", "val_top1", "val_ema_loss", "train_loss")
    assert [[row[name] for name in columns] for row in rows(output, "summary.csv")] == [
        [row[name] for name in columns] for row in rows(uninterrupted, "summary.csv")
    ]


def test_it_learns_and_eval_says_what_training_said(images: Path, tmp_path: Path, run_here: Run) -> None:
    output = tmp_path / "run"
    gentle = ["--aa", "none", "--reprob", 0, "--scale", 0.6, 1, "--color-jitter", 0, "--workers", 0]
    flags = [*TINY, *STILL, *gentle, "--data-dir", images, "--epochs", 8, "--model-ema-decay", 0, "--aug-repeats", 0]
    run_here(imagenet.main, *flags, "--output", output)
    found = losses(output)
    assert np.mean(found[-5:]) < np.mean(found[:5]) - 0.3
    epochs = rows(output, "summary.csv")
    best = max(epochs, key=lambda row: row["val_top1"])
    assert best["val_top1"] > 50  # of four classes
    flags = ["--eval", output, "--data-dir", images, "--workers", 0, "--batch-size", 7, "--output", tmp_path / "eval"]
    assert "test_convnext" in run(*flags, launcher=ACCELERATE)
    result = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert result["top1"] == best["val_top1"] and result["images"] == 40
    assert result["loss"] == pytest.approx(best["val_loss"], rel=1e-5)


@pytest.fixture(scope="module")
def whole_batch(images: Path) -> list[object]:
    """A recipe by which the same global batch gives the same losses, whoever computes them."""
    flags = [*TINY, *ATMNET, *STILL, "--data-dir", images, "--epochs", 2, "--lr-base", 0.05]
    del flags[flags.index("--lr") : flags.index("--lr") + 2]
    return flags


@pytest.fixture(scope="module")
def one(whole_batch: list[object], tmp_path_factory: pytest.TempPathFactory, run_here: Run) -> Path:
    output = tmp_path_factory.mktemp("one")
    run_here(imagenet.main, *whole_batch, "--workers", 0, "--output", output)
    return output


@pytest.fixture(scope="module")
def stopped(whole_batch: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of two processes, stopped in the middle of an epoch."""
    output = tmp_path_factory.mktemp("stopped")
    process = start_and_wait(output, 3, *whole_batch, "--batch-size", 8, processes=2)
    process.send_signal(signal.SIGTERM)  # the launcher passes it on, and then ends by it itself
    assert_stopped_cleanly(output, process.communicate(timeout=100)[0], 18)
    return output


def test_the_number_of_processes_does_not_matter(
    whole_batch: list[object], one: Path, stopped: Path, tmp_path: Path, run_here: Run, two_processes: Run
) -> None:
    """The same global batch by one process, by two, and by accumulation: the same samples, losses and learning rates."""
    shutil.copytree(stopped, tmp_path / "two")
    resumed = [*whole_batch, "--batch-size", 8, "--workers", 0, "--output", tmp_path / "two", "--resume", "auto"]
    two_processes(imagenet.main, [*map(str, resumed)])
    accumulated = ["--batch-size", 4, "--grad-accum-steps", 4, "--workers", 0]
    run_here(imagenet.main, *whole_batch, *accumulated, "--output", tmp_path / "accumulated")
    expected = losses(one)
    assert len(expected) == 18 and len(set(expected)) > 15
    for name in ("two", "accumulated"):
        assert losses(tmp_path / name) == pytest.approx(expected, rel=1e-5), name
        assert [row["lr"] for row in rows(tmp_path / name)] == [row["lr"] for row in rows(one)]
        for ours, theirs in zip(rows(tmp_path / name, "summary.csv"), rows(one, "summary.csv"), strict=True):
            assert ours["val_images"] == 40 and ours["val_top1"] == theirs["val_top1"]
            assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)
    assert rows(one)[0]["lr"] == pytest.approx(0.05 * 16 / 1024)


@pytest.mark.exhaustive
def test_what_one_process_cannot_read_ends_all(tmp_path: Path) -> None:
    data = draw_images(tmp_path / "images", per_class=8)
    sampler = GlobalBatchSampler(32, 4, 1, num_processes=2, process_index=1, seed=42)
    files = create_dataset("", root=str(data / "train"), search_split=False).reader.samples
    Path(files[next(iter(sampler))[0].index][0]).write_text("not an image")  # the second process meets it
    flags = [*TINY, "--data-dir", data, "--epochs", 1, "--batch-size", 4, "--aug-repeats", 0, "--max-broken", 0]
    said = run(*flags, "--output", tmp_path / "run", processes=2, status=1)
    assert "error: 1 images cannot be read, more than --max-broken 0 allows" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())  # which the first process writes
    assert not summary["finished"] and len(summary["unreadable"]) == 1 and "cannot be read" in summary["error"]
    assert summary["updates"] == 1


FSDP2_ON_CPU = """
import sys
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

# Accelerate offers FSDP on accelerators only; the sharding itself works on CPUs too.
PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_XPU)
torch.distributed.init_process_group("gloo")
sys.path.insert(0, {train!r})
from atmnet_train.common.engine import Engine
from atmnet_train.common.errors import run_program
from atmnet_train.imagenet import main

fit = Engine.fit

def checked_fit(self, *args, **kwargs):
    for model in (self.model, self.ema.module):
        assert all(type(parameter.data).__name__ == "DTensor" for parameter in model.parameters())
    fit(self, *args, **kwargs)

Engine.fit = checked_fit
run_program(main)
"""


@pytest.mark.exhaustive
def test_fsdp2_goes_on_from_a_checkpoint_as_one_process(whole_batch: list[object], one: Path, stopped: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    shutil.copytree(stopped, sharded)
    (tmp_path / "driver.py").write_text(FSDP2_ON_CPU.format(train=str(ROOT / "train")))
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "driver.py")]
    line += [*map(str, whole_batch), "--batch-size", "8", "--output", str(sharded), "--resume", "auto"]
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    fsdp |= {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Block", "FSDP_RESHARD_AFTER_FORWARD": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
    result = subprocess.run(line, env=environment() | fsdp, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "going on from" in result.stdout
    assert losses(sharded) == pytest.approx(losses(one), rel=1e-5)
    whole, gathered = (torch.load(folder / "last.pt", weights_only=True)["ema"] for folder in (one, sharded))
    assert all(torch.allclose(whole[name], gathered[name], atol=1e-5) for name in whole)
