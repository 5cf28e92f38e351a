"""Steps of `make gpu-report`, in the order of importance."""

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
    """Folders where a report is made. ``out`` keeps six files, ``work`` what is needed meanwhile."""

    out: Path
    work: Path
    dry: bool
    commit: str
    tables: list[Path]  # of launch configurations, the one that decides first; none without a GPU

    @property
    def report(self) -> Path:
        return self.out / "report.md"

    @property
    def results(self) -> Path:
        return self.out / "results.csv"

    @property
    def steps(self) -> Path:
        return self.out / "steps.json"

    @property
    def loss_curve(self) -> Path:
        return self.out / "loss-curve.csv"

    @property
    def logs(self) -> Path:
        """Logs of all steps."""
        return self.out / "log.txt"

    @property
    def table(self) -> Path:
        """The configurations tuned so far."""
        return self.out / (self.tables[0].name if self.tables else "configs.json")

    @property
    def files(self) -> list[Path]:
        return [self.report, self.results, self.steps, self.loss_curve, self.table, self.logs]

    def log(self, step: str) -> Path:
        return self.work / f"{step}.log"


def last_line(log: str) -> str:
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")


def told(place: Place, rows: list[Row], log: str) -> tuple[str, bool]:
    return "; ".join(map(training.line, rows)) or last_line(log), False


@dataclass(frozen=True)
class Step:
    name: str
    what: str
    seconds: float  # its budget; those of the first five fit into six minutes, all of them into fourteen
    command: Callable[[Place], list[str]]
    rows: Callable[[Place, str], list[Row]] = lambda place, log: []  # that it does not write to results.csv itself, from what it printed
    verdict: Callable[[Place, list[Row], str], tuple[str, bool]] = told  # its result in one line, and whether something is wrong
    needs: tuple[str, ...] = ()  # packages
    gpu: bool = False  # cannot be tried without one

    def missing(self, place: Place) -> list[str]:
        absent = [name for name in self.needs if importlib.util.find_spec(name.replace("-", "_")) is None]
        return absent + (["a GPU"] if self.gpu and place.dry else [])


def module(name: str, *arguments: str) -> Callable[[Place], list[str]]:
    """Command of a module of this package."""

    def command(place: Place) -> list[str]:
        names = dict(results=place.results, loss_curve=place.loss_curve, work=place.work, commit=place.commit)
        filled = [text.format(**names) for text in arguments]
        return [sys.executable, "-m", f"gpu.{name}", *filled, *(["--dry-run"] if place.dry else [])]

    return command


def selftest(place: Place) -> list[str]:
    return [sys.executable, "-m", "atm_triton", "selftest", "--device", "cpu" if place.dry else "cuda"]


def self_tested(place: Place, rows: list[Row], log: str) -> tuple[str, bool]:
    """Operators that are wrong, though the test was cut short."""
    wrong = [" ".join(line.split()) for line in log.splitlines() if "WRONG" in line]
    return "; ".join(wrong) or last_line(log), bool(wrong)


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


def program(name: str, what: str, seconds: float, *needs: str) -> Step:
    def rows(place: Place, log: str) -> list[Row]:
        return training.rows(name, place.work, log, place.dry)

    command = module("training", name, "--work", "{work}")
    return Step(name, what, seconds, command, rows, needs=(*ATMNET, "accelerate", "matplotlib", *needs))


def jobs(name: str, what: str, seconds: float) -> Step:
    def verdict(place: Place, rows: list[Row], log: str) -> tuple[str, bool]:
        """Tell a step's result from what it has written, whatever it could still say itself."""
        from gpu import measure  # here alone, for timm

        result, wrong = measure.verdict(measure.plan(name, place.dry)[1], place.results)
        return result or last_line(log), wrong

    command = module("measure", name, "--file", "{results}", "--commit", "{commit}")
    return Step(name, what, seconds, command, verdict=verdict, needs=ATMNET)


LOSS_CURVE = module("loss_curve", "--file", "{loss_curve}")
STEPS = [
    Step("selftest", "every operator and its gradients, small", 40, selftest, verdict=self_tested),
    jobs("correctness", "every operator and its gradients at ATMNet-T's shapes, bf16", 60),
    jobs("token_mix", "token_mix at ATMNet-T's stages, bf16, batch 128", 80),
    jobs("networks", "ATMNet-T, bf16, batch 128, and others of its class", 105),
    program("imagenet", "30 updates of train/imagenet.py, ATMNet-B, bf16", 60),
    program("coco", "10 updates of train/coco.py, ATMNet-T, bf16", 40, "faster-coco-eval"),
    program("ade20k", "10 updates of train/ade20k.py, ATMNet-T, bf16", 40),
    Step("loss-curve", "200 updates of ATMNet-xT, bf16, against plain PyTorch", 75, LOSS_CURVE, needs=ATMNET),
    program("imagenet-compile", "30 updates of train/imagenet.py --compile, ATMNet-B, bf16", 120),
    Step("tune", "launch configurations of ATMNet-T at 224 × 224, bf16", 60, tune, tuned, needs=ATMNET, gpu=True),
    jobs("sizes", "float32, and 384 × 384, 800 × 1280, 512 × 2048", 120),
]
