"""What `make gpu-report` does, in the order of importance."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu import training

Row = dict[str, Any]
ATMNET = ("timm", "torchvision", "einops", "safetensors", "huggingface-hub")


@dataclass(frozen=True)
class Place:
    """Where a report is made. ``out`` keeps six files, ``work`` what is needed meanwhile."""

    out: Path
    work: Path
    dry: bool
    commit: str
    tables: list[Path]  # of launch configurations, the one that decides first; none without a GPU

    @property
    def results(self) -> Path:
        return self.out / "results.csv"

    def log(self, step: str) -> Path:
        return self.work / f"{step}.log"

    @property
    def loss_curve(self) -> Path:
        return self.out / "loss-curve.csv"

    @property
    def table(self) -> Path:
        """The configurations tuned so far."""
        return self.out / (self.tables[0].name if self.tables else "configs.json")


@dataclass(frozen=True)
class Step:
    name: str
    what: str
    seconds: float  # its budget, where the whole report has six minutes
    command: Callable[[Place], list[str]]
    rows: Callable[[Place, str], list[Row]] = lambda place, log: []  # that it does not write to results.csv itself, from what it printed
    needs: tuple[str, ...] = ()  # packages
    gpu: bool = False  # cannot be tried without one

    def missing(self, place: Place) -> list[str]:
        absent = [name for name in self.needs if importlib.util.find_spec(name.replace("-", "_")) is None]
        return absent + (["a GPU"] if self.gpu and place.dry else [])

    def result(self, rows: list[Row], log: str) -> str:
        """In one line."""
        return "; ".join(map(training.line, rows)) or last_line(log)


def module(name: str, *arguments: str) -> Callable[[Place], list[str]]:
    """Of this package."""

    def command(place: Place) -> list[str]:
        names = dict(results=place.results, loss_curve=place.loss_curve, work=place.work, commit=place.commit)
        filled = [text.format(**names) for text in arguments]
        return [sys.executable, "-m", f"gpu.{name}", *filled, *(["--dry-run"] if place.dry else [])]

    return command


def selftest(place: Place) -> list[str]:
    return [sys.executable, "-m", "atm_triton", "selftest", "--device", "cpu" if place.dry else "cuda"]


def tune(place: Place) -> list[str]:
    """Goes on with what an earlier report has tuned, if this machine has nothing of its own."""
    if place.tables and place.table.is_file() and not place.tables[0].exists():
        place.tables[0].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place.table, place.tables[0])
    flags = ["--model", "atmnet-t", "--dtype", "bf16", "--resolution", "224", "--batch", "128"]
    return [sys.executable, "-m", "atmnet", "tune", *flags, "--export", str(place.table)]


def tuned(place: Place, log: str) -> list[Row]:
    """A tuning that was cut short has written its configurations to the user's cache alone."""
    cache = place.tables[0] if place.tables else None
    if cache and cache.is_file() and not (place.table.is_file() and place.table.stat().st_mtime >= cache.stat().st_mtime):
        shutil.copyfile(cache, place.table)
    return []


def last_line(log: str) -> str:
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")


def program(name: str, what: str, seconds: float, *needs: str) -> Step:
    def rows(place: Place, log: str) -> list[Row]:
        return training.rows(name, place.work, log, place.dry)

    command = module("training", name, "--work", "{work}")
    return Step(name, what, seconds, command, rows, (*ATMNET, "accelerate", "matplotlib", *needs))


def jobs(name: str, what: str, seconds: float) -> Step:
    return Step(name, what, seconds, module("measure", name, "--file", "{results}", "--commit", "{commit}"), needs=ATMNET)


LOSS_CURVE = module("loss_curve", "--file", "{loss_curve}")
STEPS = [
    Step("selftest", "every operator and its gradients, small", 60, selftest, needs=("einops",)),
    jobs("correctness", "every operator and its gradients at ATMNet-T's shapes, bf16", 75),
    jobs("token_mix", "token_mix at ATMNet-T's stages, bf16, batch 128", 110),
    jobs("networks", "ATMNet-T, bf16, batch 128, and others of its class", 150),
    program("imagenet", "30 updates of train/imagenet.py, ATMNet-B, bf16", 60),
    program("coco", "10 updates of train/coco.py, ATMNet-T, bf16", 40, "faster-coco-eval"),
    program("ade20k", "10 updates of train/ade20k.py, ATMNet-T, bf16", 40),
    Step("loss-curve", "200 updates of ATMNet-xT, bf16, against plain PyTorch", 75, LOSS_CURVE, needs=ATMNET),
    program("imagenet-compile", "30 updates of train/imagenet.py --compile, ATMNet-B, bf16", 120),
    Step("tune", "launch configurations of ATMNet-T at 224 × 224, bf16", 60, tune, tuned, ATMNET, gpu=True),
    jobs("sizes", "float32, and 384 × 384, 800 × 1280, 512 × 2048", 120),
]
