"""Masks as COCO's files have them: run lengths down the columns, of background first, in COCO's compressed text."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """A mask ``[H, W]``."""
    flat = mask.bool().cpu().numpy().flatten(order="F")
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *borders, len(flat)]).tolist()
    if flat[0]:
        counts.insert(0, 0)
    return {"size": list(mask.shape), "counts": compressed(counts)}


def compressed(counts: list[int]) -> str:
    """Five bits a character, lowest first, with a sixth on all but the last of a number; from the fourth number on, the difference to the
    last but one."""
    text = []
    for place, count in enumerate(counts):
        left = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            bits = left & 31
            left >>= 5
            more = left != (-1 if bits & 16 else 0)
            text.append(chr(ord("0") + bits + 32 * more))
    return "".join(text)
