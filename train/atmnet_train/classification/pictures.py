"""Pictures of what a classifier is given and what it learnt: batches, confusions, the most wrong images, and where its tokens look."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from ..common.pictures import MOST, Example, draw_grid, plain, save, to_bytes
from .images import read_image

SIDE = 224  # pixels, beyond which an image is made smaller for a picture
LEGIBLE = 30  # classes whose matrix can be read; of more, so many pairs are drawn
Rows = Sequence[Mapping[str, Any]]


def draw_confusion(path: Path, pairs: Rows) -> None:
    """Draws rows of `true`, `predicted` and `images`: as a matrix, or where there are many classes the pairs most often confused."""
    names = list(dict.fromkeys(row[side] for side in ("true", "predicted") for row in pairs))
    # Where scikit-learn is missing, a training that has come so far does not fail for it.
    legible = len(names) <= LEGIBLE and importlib.util.find_spec("sklearn") is not None
    (draw_matrix if legible else draw_pairs)(path, pairs, names)


def draw_matrix(path: Path, pairs: Rows, names: Sequence[str]) -> None:
    from sklearn.metrics import ConfusionMatrixDisplay  # a second, which no start of a training should take

    counts = np.zeros((len(names), len(names)), dtype=int)
    for row in pairs:
        counts[names.index(row["true"]), names.index(row["predicted"])] = row["images"]
    images = counts.sum(1)
    share = 100 * counts / images.clip(min=1)[:, None]
    side = 0.42 * len(names) + 2.2
    figure = Figure(figsize=(side + 0.3, side), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(share, display_labels=names)
    display.plot(ax=axes, cmap="Blues", values_format=".0f", colorbar=False, im_kw={"vmin": 0, "vmax": 100}, text_kw={"fontsize": 7})
    for text, part in zip(display.text_.flat, share.flat, strict=True):
        text.set(visible=part > 0, color="white" if part > 60 else "black")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), [f"{name} ({number})" for name, number in zip(names, images, strict=True)], fontsize=8)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        plain(label)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (images)")
    axes.set_title(f"{counts.trace()} of {counts.sum()} right; in % of a class's images", fontsize=9)
    save(figure, path)


def draw_pairs(path: Path, pairs: Rows, names: Sequence[str]) -> None:
    wrong = sorted((row for row in pairs if row["true"] != row["predicted"]), key=lambda row: -row["images"])
    most, images = wrong[:LEGIBLE][::-1], sum(row["images"] for row in pairs)
    figure = Figure(figsize=(8, 0.22 * max(len(most), 3) + 1), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(most)), [row["images"] for row in most], color="tab:blue")
    axes.bar_label(bars, fontsize=7, padding=2)
    axes.set_yticks(range(len(most)), [f"{row['true']} taken for {row['predicted']}" for row in most], fontsize=8)
    for label in axes.get_yticklabels():
        plain(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("images")
    right = images - sum(row["images"] for row in wrong)
    axes.set_title(f"{right} of {images} right; of {len(names)} classes the pairs most often confused", fontsize=9)
    save(figure, path)


def draw_wrong(path: Path, rows: Rows, source: Any) -> None:
    """Draws the images of which the network was most sure though wrong, whole, with what they are and what they were taken for."""
    examples = []
    for row in rows[:MOST]:
        with suppress(Exception):  # whatever an image raises that has been changed since
            image, _ = read_image(source, row["number"])
            image.thumbnail((SIDE, SIDE))
            examples.append(
                Example(np.asarray(image), f"{short(row['true'])}, taken for\n{short(row['predicted'])} ({row['probability']:.0%})")
            )
    if examples:
        draw_grid(path, examples, f"the {len(examples)} most wrong images")


def batch_examples(
    images: Tensor, targets: Tensor, names: Callable[[int], str], mean: Sequence[float], std: Sequence[float]
) -> list[Example]:
    """Images of a training batch as the network gets them; `targets` are labels `[B]`, or shares of the classes `[B, C]` where mixed."""
    examples = []
    for image, target in zip(images[:MOST], targets[:MOST], strict=True):
        if target.ndim:
            found = [(share, label) for share, label in zip(*(values.tolist() for values in target.topk(2)), strict=True) if share > 0.1]
        else:
            found = [(1.0, int(target))]
        caption = "\n".join(short(names(label)) + (f" {share:.0%}" if len(found) > 1 else "") for share, label in found)
        examples.append(Example(to_bytes(image, mean, std), caption))
    return examples


def short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


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
