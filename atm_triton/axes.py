"""Axes of tokens ``[B, *axes, C]``: of sequences ``[B, W, C]``, of images ``[B, H, W, C]``, of videos and volumes ``[B, T, H, W, C]``.

An axis is a length, and how many tokens apart its neighbours are. What lies before it in memory and what lies after it make maps, in which
it is the rows or the columns: so what gathers along the two axes of maps gathers along any.
"""

from __future__ import annotations

from torch import Tensor

AXES = "wht"  # in the order of offsets and branches; in memory it is the other way round


def axes_of(x: Tensor) -> str:
    """Names of the axes of tokens."""
    return AXES[: x.ndim - 2]


def as_maps(x: Tensor, axis: str) -> tuple[Tensor, str]:
    """Tokens as maps ``[M, H, W, C]`` of the same order in memory, and how the axis runs there: along ``"w"`` or ``"h"``."""
    if x.ndim == 4:
        return x, axis
    if x.ndim == 3:
        return x.unsqueeze(1), axis
    return (x.flatten(2, 3), "h") if axis == "t" else (x.flatten(0, 1), axis)


def offsets_by_axis(offset: Tensor) -> list[tuple[Tensor, str]]:
    """The offsets ``[B, *axes, G]`` along each axis of packed ones, with its name."""
    axes = axes_of(offset)
    return list(zip(offset.chunk(len(axes), -1), axes, strict=True))
