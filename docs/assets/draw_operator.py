"""Draw the operator: operator.svg, which README and documentation show.

python docs/assets/draw_operator.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

RED, BLUE, GOLD, GREY = "#d62728", "#1f5fd0", "#e0a800", "#555555"
ROWS, COLUMNS = 7, 9
ROW, COLUMN = 3, 3  # of the token that is looked at
ALONG_W, ALONG_H = (-1.7, 1.4, 4.3), (-2.4, 2.6)  # offsets of some groups of channels, in tokens


def draw_tokens(axes: Axes) -> None:
    """The map of tokens, the row and the column of one of them, and where it reads."""
    axes.set(xlim=(-0.6, COLUMNS + 1.6), ylim=(ROWS + 1.1, -1.3), aspect="equal")
    axes.set_axis_off()
    axes.set_title("offsets: where each token reads", fontsize=11)
    for row in range(ROWS):
        for column in range(COLUMNS):
            colour = "#f4f4f4"
            if row == ROW:
                colour = "#fbdedd"
            if column == COLUMN:
                colour = "#dbe6fb"
            if (row, column) == (ROW, COLUMN):
                colour = "#ffe9a8"
            axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, facecolor=colour, edgecolor="#bbbbbb", lw=0.7))
    for number, offset in enumerate(ALONG_W):
        draw_sample(axes, (COLUMN + offset, ROW), RED, 0.35 if number != 1 else 0.5)
    for offset in ALONG_H:
        draw_sample(axes, (COLUMN, ROW + offset), BLUE, 0.35)
    axes.plot(COLUMN, ROW, marker="*", markersize=17, color=GOLD, markeredgecolor="black", markeredgewidth=0.7, zorder=5)
    place = COLUMN + ALONG_W[2]  # between two tokens: linear interpolation
    for column, weight in ((7, 0.7), (8, 0.3)):
        axes.annotate(f"{weight:g}", (column, ROW + 0.36), ha="center", va="center", fontsize=8, color=RED)
    axes.annotate(
        "between two tokens:\nlinear interpolation", (place, ROW - 0.2), (place - 0.1, ROW - 1.9), ha="center", va="center", fontsize=8.5,
        color=RED, arrowprops={"arrowstyle": "-", "color": RED, "lw": 0.8}, bbox={"facecolor": "white", "edgecolor": RED, "lw": 0.6},
    )  # fmt: skip
    axes.annotate("its row:\nbranch $w$", (COLUMNS - 0.35, ROW), ha="left", va="center", fontsize=9.5, color=RED)
    axes.annotate("its column: branch $h$", (COLUMN, -0.85), ha="center", va="center", fontsize=9.5, color=BLUE)
    axes.annotate(
        "the token itself:\nidentity branch $c$", (COLUMN - 0.1, ROW + 0.1), (0.75, ROW + 2), ha="center", va="center",
        fontsize=8.5, color="#8a6500", arrowprops={"arrowstyle": "-", "color": GOLD, "lw": 0.8},
        bbox={"facecolor": "white", "edgecolor": GOLD, "lw": 0.6},
    )  # fmt: skip
    axes.annotate(
        "offsets = Linear(LayerNorm(token)), along each axis one\nfor every $S$ channels; outside the image there are zeros",
        (COLUMNS / 2 - 0.5, ROWS + 0.25), ha="center", va="center", fontsize=9, color=GREY,
    )  # fmt: skip


def draw_sample(axes: Axes, place: tuple[float, float], colour: str, bend: float) -> None:
    """One sample, and the arrow that the token sends there."""
    arc = f"arc3,rad={-bend if place[0] >= COLUMN else bend}"
    arrow = FancyArrowPatch(
        (COLUMN, ROW), place, connectionstyle=arc, arrowstyle="-|>", mutation_scale=10, color=colour, lw=1.5, shrinkA=8, shrinkB=5, zorder=4
    )
    axes.add_patch(arrow)
    axes.plot(*place, marker="o", markersize=8, color=colour, markeredgecolor="white", zorder=5)


def box(axes: Axes, x: float, y: float, width: float, text: str, colour: str = GREY, height: float = 0.8) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.12",
            facecolor="white",
            edgecolor=colour,
            lw=1.4,
        )
    )
    axes.annotate(text, (x, y), ha="center", va="center", fontsize=9.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = GREY, **style: object) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=colour, lw=1.3, shrinkA=0, shrinkB=0, **style))


def draw_fusion(axes: Axes) -> None:
    """Three branches, their weights, and the projection."""
    axes.set(xlim=(-0.6, 11.4), ylim=(7.9, -1.5), aspect="equal")
    axes.set_axis_off()
    axes.set_title("fusion: how the three are mixed", fontsize=11)
    heights = (0.6, 3, 5.4)
    branches = (
        ("gather along\nthe row", "FC$_w$", "w", RED),
        ("the token\nitself", "FC$_c$", "c", GOLD),
        ("gather along\nthe column", "FC$_h$", "h", BLUE),
    )
    for y, (read, fc, name, colour) in zip(heights, branches, strict=True):
        box(axes, 0.75, y, 2.3, read, colour, 1.0)
        arrow(axes, (1.95, y), (2.7, y), colour)
        box(axes, 3.3, y, 1.1, fc, colour)
        arrow(axes, (3.9, y), (6.55, y), colour)
        axes.plot(6.8, y, marker="o", markersize=17, color="white", markeredgecolor=colour, markeredgewidth=1.4)
        axes.annotate("×", (6.8, y), ha="center", va="center", fontsize=12)
        axes.annotate(f"$\\alpha_{name}$", (6.8, y - 0.7), ha="center", va="center", fontsize=12, color=colour)
        arrow(axes, (7.06, y), (8.35, 3 if y == 3 else 3 + (0.22 if y > 3 else -0.22)), colour)
    axes.plot(8.65, 3, marker="o", markersize=19, color="white", markeredgecolor=GREY, markeredgewidth=1.4)
    axes.annotate("+", (8.65, 3), ha="center", va="center", fontsize=13)
    arrow(axes, (8.95, 3), (9.35, 3))
    box(axes, 9.95, 3, 1.1, "proj")
    arrow(axes, (10.55, 3), (11.2, 3))
    axes.annotate("$y$", (11.35, 3), ha="center", va="center", fontsize=12)
    for y in heights:  # the mean of all three
        axes.plot([4.5, 4.5], [y, 6.6], color=GREY, lw=0.9, ls=":", zorder=0)
    arrow(axes, (4.5, 6.3), (4.5, 6.72))
    box(axes, 4.5, 7.15, 6.1, "mean over tokens → bottleneck → softmax", GREY, 0.75)
    axes.add_patch(
        FancyArrowPatch((7.62, 7.15), (8.9, 6.35), connectionstyle="arc3,rad=0.35", arrowstyle="-|>", mutation_scale=10, color=GREY, lw=1.1)
    )
    axes.annotate(
        "$\\alpha_w,\\ \\alpha_c,\\ \\alpha_h$:\n3 weights per\nchannel and image",
        (9.2, 5.6),
        ha="center",
        va="center",
        fontsize=8.5,
        color=GREY,
    )


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("operator.svg")
    matplotlib.rcParams["svg.hashsalt"] = "operator"  # the same file every time
    figure = Figure(figsize=(12, 4.9), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    draw_tokens(left)
    draw_fusion(right)
    figure.savefig(file, dpi=110, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
