"""Histograms of offsets over any number of images (the paper's figures 3, 6 and 7)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BINS_PER_TOKEN = 4


class Counts(NamedTuple):
    """Counts of one layer along one axis."""

    edges: Tensor  # [bins + 1], in tokens: from half a token before the first token to half a token behind the last
    counts: Tensor  # [bins]
    outside: Tensor  # [2]: samples before the first edge, and from the last on


class Histograms:
    """The central token's offsets, counted by layer and axis over all images; memory does not grow with their number.

    ``counts[layer, axis]``, axis ``"w"`` or ``"h"``, holds the Counts; ``images`` is how many there were.
    """

    def __init__(self) -> None:
        self.images = 0
        self.counts: dict[tuple[str, str], Counts] = {}

    def update(self, offsets: Mapping[str, Tensor]) -> None:
        """Count the images of ``collect``'s offsets ``[B, H, W, 2G]``.

        Raises:
            ValueError: another number of tokens than before: images must have one size.
        """
        for layer, offset in offsets.items():
            H, W = offset.shape[1:3]
            centre = offset[:, H // 2, W // 2]
            for axis, length, values in zip("wh", (W, H), centre.chunk(2, 1), strict=True):
                self._add(layer, axis, length, values.flatten().double())
        self.images += len(next(iter(offsets.values())))

    def _add(self, layer: str, axis: str, length: int, values: Tensor) -> None:
        bins = BINS_PER_TOKEN * length
        if (layer, axis) not in self.counts:
            edges = torch.arange(bins + 1) / BINS_PER_TOKEN - (length // 2 + 0.5)
            self.counts[layer, axis] = Counts(edges, torch.zeros(bins, dtype=torch.long), torch.zeros(2, dtype=torch.long))
        edges, counts, outside = self.counts[layer, axis]
        if len(counts) != bins:
            raise ValueError(
                f"{layer} had {len(counts) // BINS_PER_TOKEN} tokens along {axis} before, now {length}: give images of one size"
            )
        index = ((values - edges[0]) * BINS_PER_TOKEN).floor().clamp(-1, bins).long() + 1
        found = torch.bincount(index, minlength=bins + 2)
        counts += found[1:-1]
        outside += found[[0, -1]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` of ``images`` and, for every layer and axis, ``{layer}/{axis}/edges``, ``/counts`` and ``/outside``."""
        arrays = {f"{layer}/{axis}/{name}": t for (layer, axis), found in self.counts.items() for name, t in found._asdict().items()}
        np.savez(path, images=np.array(self.images), **{name: t.numpy() for name, t in arrays.items()})
