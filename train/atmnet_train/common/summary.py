"""Files that a run leaves behind for people: `summary.json` and `curves.png`."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # not pyplot: no display, no global state
from matplotlib.ticker import MaxNLocator

from atm_triton.strict_json import dumps

from .files import write_atomically
from .history import Row

PACKAGES = ("atm-triton", "torch", "triton", "timm", "accelerate", "torchvision", "faster-coco-eval")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = dumps(content, indent=2, default=str)
    write_atomically(path, lambda file: file.write(text.encode() + b"\n"))


def draw_curves(
    path: Path, epochs: Sequence[Row], steps: Sequence[Row], updates_per_epoch: int, metrics: Sequence[str], by_updates: bool = False
) -> None:
    """Loss and metrics by epoch, or by update; the learning rate by update."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    loss, metric, rate = figure.subplots(1, 3)
    per = updates_per_epoch if by_updates else 1  # one step along the axis in epochs
    x = [row["epoch"] * per for row in epochs]
    # A point is all there is to see of a single epoch.
    style = {"marker": "o", "markersize": 3} if len(x) < 40 else {}

    def plot(axes: Any, name: str, label: str, **options: Any) -> None:
        if any(name in row for row in epochs):
            axes.plot(x, [row.get(name, float("nan")) for row in epochs], label=label, **style, **options)

    plot(loss, "train_loss", "train")
    plot(loss, "val_loss", "val")
    plot(loss, "val_ema_loss", "val, EMA", linestyle="--")
    for name in metrics:
        plot(metric, f"val_{name}", name)
        plot(metric, f"val_ema_{name}", f"{name}, EMA", linestyle="--")
    rate.plot([row["update"] * per / updates_per_epoch for row in steps], [row["lr"] for row in steps])
    for axes, title in ((loss, "loss"), (metric, "validation (%)"), (rate, "learning rate")):
        axes.set_title(title)
        axes.set_xlabel("update" if by_updates else "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes is not rate and axes.lines:
            axes.legend(fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
