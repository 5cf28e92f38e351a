"""Windows over an image that is too large to be seen at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """Pixels along one side: what is seen, and the part of it that counts."""

    begin: int
    end: int
    first: int
    last: int


def windows(length: int, tile: int, overlap: int) -> list[Window]:
    """Windows of ``tile`` pixels, evenly over the length, neighbours with at least ``overlap`` in common. What counts of each ends in the
    middle of what it has in common with the next, so that a pixel is seen with all that is around it."""
    if length <= tile:
        return [Window(0, length, 0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    begins = [round(number * (length - tile) / (count - 1)) for number in range(count)]
    middles = [(begin + tile + after) // 2 for begin, after in pairwise(begins)]
    return [Window(begin, begin + tile, first, last) for begin, first, last in zip(begins, [0, *middles], [*middles, length], strict=True)]


def by_tiles(image: Tensor, tile: int, overlap: int, segment: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Labels and probabilities ``[H, W]`` of an image ``[3, H, W]`` by those of its windows. Beyond these two nothing grows with it."""
    height, width = image.shape[-2:]
    labels = torch.empty(height, width, dtype=torch.int16)
    probabilities = torch.empty(height, width, dtype=torch.float16)
    for row in windows(height, tile, overlap):
        for column in windows(width, tile, overlap):
            found = segment(image[:, row.begin : row.end, column.begin : column.end])
            inside = (
                slice(row.first - row.begin, row.last - row.begin),
                slice(column.first - column.begin, column.last - column.begin),
            )
            for whole, part in zip((labels, probabilities), found, strict=True):
                whole[row.first : row.last, column.first : column.last] = part[inside].cpu()
    return labels, probabilities
