"""Pictures of offsets: where a token reads, and how far tokens read over many images."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from PIL import Image
from torch import Tensor

from .collecting import samples
from .histograms import Counts, Histograms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RED, BLUE = "#d62728", "#1f5fd0"  # along the row, along the column
COLUMNS, WIDTH = 4, 2.6  # of small pictures, which are so many inches wide
HEADING, TITLE, GAP = 0.3, 0.2, 0.04  # heights of text and distances in a panel, in inches
SMALLEST = 6.0  # points of a dot's width
FAINTEST = 0.25


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'atm-triton[pictures]'") from error
    return Figure(figsize=(width, height), layout=layout)


def draw_panel(
    path: str | os.PathLike[str] | BinaryIO,
    picture: Image.Image,
    offsets: Mapping[str, Tensor],
    at: Sequence[tuple[float, float]] = ((0.5, 0.5),),
) -> None:
    """Draw where tokens of one image read along their row (red) and their column (blue) in every layer, as a PNG (the paper's figure 5).

    The more of a token's offsets point to a place, the less transparent is the circle there.

    Args:
        picture: The image.
        offsets: By layer, ``[H, W, 2G]``.
        at: The tokens, each as (x, y) from 0 to 1, across and down the image.
    """
    rows, columns = _grid(len(offsets))
    height = WIDTH * picture.height / picture.width
    width, part = WIDTH * columns, HEADING + rows * (TITLE + height)
    figure = new_figure(width, part * len(at), layout=None)
    grey = picture.convert("L")
    for number, (x, y) in enumerate(at):
        top = part * (len(at) - number)
        heading = f"the token at {x:.0%} across, {y:.0%} down: samples along its row (red) and its column (blue)"
        figure.text(0.5, (top - HEADING / 2) / (part * len(at)), heading, ha="center", va="center", fontsize=8 if columns > 1 else 4.5)
        for place, (layer, offset) in enumerate(offsets.items()):
            row, column = divmod(place, columns)
            bottom = top - HEADING - (row + 1) * (TITLE + height)
            box = (column * WIDTH + GAP) / width, (bottom + GAP) / (part * len(at)), (WIDTH - 2 * GAP) / width
            axes = figure.add_axes((*box, (height - 2 * GAP) / (part * len(at))))
            _draw_layer(axes, grey, layer, offset, (x, y))
    figure.savefig(path, format="png", dpi=130)


def _grid(number: int) -> tuple[int, int]:
    """Rows and columns for so many small pictures, the rows as equally filled as can be."""
    rows = math.ceil(number / COLUMNS)
    return rows, math.ceil(number / rows)


def _draw_layer(axes: Axes, grey: Image.Image, layer: str, offset: Tensor, at: tuple[float, float]) -> None:
    H, W = offset.shape[:2]
    column, row = (min(int(share * length), length - 1) for share, length in zip(at, (W, H), strict=True))
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, alpha=0.6, extent=(-0.5, W - 0.5, H - 0.5, -0.5), aspect="auto")
    _draw_samples(axes, offset, row, column)
    axes.set_title(f"{layer}, {H} × {W} tokens", fontsize=7, pad=2)
    axes.set_xlim(-0.5, W - 0.5)
    axes.set_ylim(H - 0.5, -0.5)
    axes.set_axis_off()


def _draw_samples(axes: Axes, offset: Tensor, row: int, column: int) -> None:
    """Dots where the token reads, and a ring around the token; where it reads itself, one half is of its row and one of its column."""
    from matplotlib.colors import to_rgba
    from matplotlib.markers import MarkerStyle

    along_w, along_h = samples(offset, row, column)
    most = max(int(along_w.max()), int(along_h.max()), 1)
    points = [(x, row, RED, count) for x, count in enumerate(along_w.tolist()) if count]
    points += [(column, y, BLUE, count) for y, count in enumerate(along_h.tolist()) if count]
    size = max(SMALLEST, 2.2 * 72 / max(offset.shape[1], 8))  # about a token's width in points, but not less than can be seen
    for x, y, colour, count in points:
        itself = (x, y) == (column, row)
        marker = MarkerStyle("o", fillstyle=("left" if colour == RED else "right") if itself else "full")
        axes.scatter([x], [y], s=size**2, marker=marker, color=[to_rgba(colour, max(FAINTEST, count / most))], linewidths=0, clip_on=False)
    ring: dict[str, Any] = dict(marker="o", fillstyle="none", clip_on=False)
    axes.plot(column, row, markersize=size + 3, markeredgecolor="black", markeredgewidth=2.4, **ring)
    axes.plot(column, row, markersize=size + 3, markeredgecolor="gold", markeredgewidth=1.4, **ring)


def draw_histograms(path: str | os.PathLike[str], histograms: Histograms) -> None:
    """Draw the central token's offsets by layer, along the row (red) and the column (blue), as a PNG (the paper's figures 3, 6 and 7).

    The range of a layer is that of its offsets, as far as they stay in the image; the titles tell the share of samples that leave it.
    """
    from matplotlib.ticker import PercentFormatter

    names = list(dict.fromkeys(layer for layer, _ in histograms.counts))
    rows, columns = _grid(len(names))
    figure = new_figure(max(WIDTH * columns, 4.5), 0.4 + 3.2 * rows)
    images = f"{histograms.images} image" + ("s" if histograms.images != 1 else "")
    figure.suptitle(f"offsets of the central token in {images}, in tokens", fontsize=9)
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flatten():
        axes.set_axis_off()
    for number, layer in enumerate(names):
        pair = grid[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        reach = max(_reach(histograms.counts[layer, axis]) for axis in "wh")
        for axes, axis, colour, along in zip(pair, "wh", (RED, BLUE), ("horizontal", "vertical"), strict=True):
            edges, counts, outside = histograms.counts[layer, axis]
            total = max(int(counts.sum() + outside.sum()), 1)
            axes.set_axis_on()
            axes.stairs(counts / total, edges, color=colour, fill=True)
            axes.set_xlim(-reach, reach)
            axes.set_xticks([-reach, 0.0, reach])
            axes.set_yticks([float(counts.max()) / total])
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.tick_params(labelsize=6)
            beyond = f", {int(outside.sum()) / total:.1%} outside" if outside.sum() else ""
            axes.set_title(f"{layer}, {along}{beyond}", fontsize=7)
    figure.savefig(path, format="png", dpi=130)


def _reach(found: Counts) -> float:
    """How far the offsets go to either side, in whole tokens."""
    there = found.counts.nonzero().flatten().tolist()
    ends = [float(found.edges[there[0]]), float(found.edges[there[-1] + 1])] if there else []
    return float(math.ceil(max([1.0, *map(abs, ends)])))
