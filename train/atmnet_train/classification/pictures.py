"""Pictures of what a classifier learnt: its confusions, and where its tokens look."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..common.files import write_atomically


def save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def draw_confusion(path: Path, confusion: Tensor, names: Sequence[str]) -> None:
    """``confusion [true, predicted]`` as counts."""
    figure = Figure(figsize=(5.2, 5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(confusion / confusion.sum(1, keepdim=True).clamp_min(1), cmap="Blues", vmin=0, vmax=1)
    for true, row in enumerate(confusion.tolist()):
        for predicted, count in enumerate(row):
            if count:
                axes.text(
                    predicted, true, str(count), ha="center", va="center", fontsize=8, color="white" if true == predicted else "black"
                )
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{confusion.diagonal().sum()} of {confusion.sum()} right")
    save(figure, path)


def draw_offsets(path: Path, images: Sequence[Image.Image], offsets: dict[str, Tensor]) -> None:
    """Draws, for the central token of each image, where it reads along its row (red) and its column (blue), darker where more channels do.

    One column per image, one row per offset layer whose tokens form more than a 2 x 2 grid.
    """
    layers = {name: offset for name, offset in offsets.items() if min(offset.shape[1:3]) > 2}
    figure = Figure(figsize=(2.6 * len(images), 2.7 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), len(images), squeeze=False)
    for row, (name, offset) in zip(grid, layers.items(), strict=True):
        height, width = offset.shape[1:3]
        y, x = height // 2, width // 2
        row[0].set_ylabel(f"{name}\n{height} x {width} tokens", fontsize=8)
        for axes, image, token in zip(row, images, offset[:, y, x], strict=True):
            along_w, along_h = token.chunk(2)
            axes.imshow(image.convert("L"), cmap="gray", extent=(-0.5, width - 0.5, height - 0.5, -0.5), alpha=0.55)
            axes.set_xticks([i - 0.5 for i in range(width + 1)], [])
            axes.set_yticks([i - 0.5 for i in range(height + 1)], [])
            axes.grid(alpha=0.25)
            dots = {"s": 60, "alpha": max(0.08, 1.5 / len(along_w)), "linewidths": 0}
            axes.scatter(x + along_w, torch.full_like(along_w, y), color="tab:red", **dots)
            axes.scatter(torch.full_like(along_h, x), y + along_h, color="tab:blue", **dots)
            axes.plot(x, y, marker="*", markersize=14, color="gold", markeredgecolor="black")
            axes.set_xlim(-1.5, width + 0.5)
            axes.set_ylim(height + 0.5, -1.5)
    save(figure, path)
