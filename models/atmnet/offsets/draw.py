"""Pictures of offsets: where a token reads, and how far tokens read over many images."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from .collecting import samples
from .histograms import Histograms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RED, BLUE = "#d62728", "#1f5fd0"  # along the row, along the column
COLUMNS, WIDTH = 4, 2.6  # of small pictures, which are so many inches wide
FAINTEST = 0.12


def new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'atm-triton[pictures]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_panel(
    path: str | os.PathLike[str], picture: Image.Image, offsets: Mapping[str, Tensor], at: Sequence[tuple[float, float]] = ((0.5, 0.5),)
) -> None:
    """Draw where tokens of one image read along their row (red) and their column (blue) in every layer, as a PNG (the paper's figure 5).

    The more of a token's offsets point to a place, the less transparent is the circle there.

    Args:
        picture: The image.
        offsets: By layer, ``[H, W, 2G]``.
        at: The tokens, each as (x, y) from 0 to 1, across and down the image.
    """
    rows = math.ceil(len(offsets) / COLUMNS)
    columns = min(len(offsets), COLUMNS)
    height = WIDTH * picture.height / picture.width
    figure = new_figure(WIDTH * columns, len(at) * (0.35 + rows * (height + 0.3)))
    for part, (x, y) in zip(figure.subfigures(len(at), 1, squeeze=False)[:, 0], at, strict=True):
        part.suptitle(f"the token at {x:.0%} across, {y:.0%} down: samples along its row (red) and its column (blue)", fontsize=8)
        grid = part.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid:
            axes.set_axis_off()
        for axes, (layer, offset) in zip(grid, offsets.items(), strict=False):
            H, W = offset.shape[:2]
            row, column = min(int(y * H), H - 1), min(int(x * W), W - 1)
            axes.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255, alpha=0.6, extent=(-0.5, W - 0.5, H - 0.5, -0.5))
            axes.set_aspect(height / WIDTH * W / H)
            _draw_samples(axes, offset, row, column)
            axes.set_title(f"{layer}, {H} × {W} tokens", fontsize=7)
            axes.set_xlim(-0.5, W - 0.5)
            axes.set_ylim(H - 0.5, -0.5)
    figure.savefig(path, format="png", dpi=130)


def _draw_samples(axes: Axes, offset: Tensor, row: int, column: int) -> None:
    from matplotlib.colors import to_rgba

    along_w, along_h = samples(offset, row, column)
    most = max(int(along_w.max()), int(along_h.max()), 1)
    points = [(x, row, RED, count) for x, count in enumerate(along_w.tolist()) if count]
    points += [(column, y, BLUE, count) for y, count in enumerate(along_h.tolist()) if count]
    token = max(3.5, 2.2 * 72 / max(offset.shape[1], 8))  # about its width in points, as far as that can be seen
    if points:
        columns, rows, colours, counts = zip(*points, strict=True)
        shades = [to_rgba(colour, max(FAINTEST, count / most)) for colour, count in zip(colours, counts, strict=True)]
        axes.scatter(columns, rows, s=token**2, color=shades, linewidths=0)
    star = min(9.0, max(4.0, token))
    axes.plot(column, row, marker="*", markersize=star, color="gold", markeredgecolor="black", markeredgewidth=0.6)


def draw_histograms(path: str | os.PathLike[str], histograms: Histograms) -> None:
    """Draw the central token's offsets by layer, along the row (red) and the column (blue), as a PNG (the paper's figures 3, 6 and 7).

    The range is the widest that stays in the image; the titles tell the share of samples that leave it.
    """
    names = list(dict.fromkeys(layer for layer, _ in histograms.counts))
    rows = math.ceil(len(names) / COLUMNS)
    columns = min(len(names), COLUMNS)
    figure = new_figure(max(WIDTH * columns, 4.5), 0.4 + 3.2 * rows)
    images = f"{histograms.images} image" + ("s" if histograms.images != 1 else "")
    figure.suptitle(f"offsets of the central token in {images}, in tokens", fontsize=9)
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flatten():
        axes.set_axis_off()
    for number, layer in enumerate(names):
        pair = grid[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        for axes, axis, colour, along in zip(pair, "wh", (RED, BLUE), ("horizontal", "vertical"), strict=True):
            edges, counts, outside = histograms.counts[layer, axis]
            total = max(int(counts.sum() + outside.sum()), 1)
            axes.set_axis_on()
            axes.stairs(counts / total, edges, color=colour, fill=True)
            first, last = float(edges[0]) + 0.5, float(edges[-1]) - 0.5
            axes.set_xlim(first - 0.5, last + 0.5)
            axes.set_xticks(sorted({first, 0.0, last}))
            axes.tick_params(labelsize=6)
            axes.set_yticks([])
            beyond = f", {int(outside.sum()) / total:.1%} outside" if outside.sum() else ""
            axes.set_title(f"{layer}, {along}{beyond}", fontsize=7)
    figure.savefig(path, format="png", dpi=130)
