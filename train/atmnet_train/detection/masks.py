"""Masks of objects as COCO writes them, polygons or run lengths: checked before a decoder trusts them, and as pixels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from faster_coco_eval.core import mask as rle
from torch import Tensor

Segmentation = Any  # a list of polygons, or a dict of run lengths

FARTHEST = 10  # sides of the image that a coordinate may lie beyond it: the time to fill a polygon grows with its length


def are_numbers(values: Any, limit: float) -> bool:
    """Tell whether these are numbers, as JSON has them, between -limit and limit."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        return False
    # NaN: the sum has it, wherever it stands. The sum comes last, as integers of any length cannot be added to floats.
    return not values or (-limit <= min(values) and max(values) <= limit and math.isfinite(sum(values)))


def wrong_mask(segmentation: Any, height: int, width: int) -> str:
    """Tell what is wrong with it, in a few words; nothing if it is a mask of an image of this size."""
    if isinstance(segmentation, dict):
        return wrong_run_lengths(segmentation, height, width)
    if not isinstance(segmentation, list):
        return "none"
    for polygon in segmentation:
        if not are_numbers(polygon, FARTHEST * max(height, width)):
            return f"a polygon that is not a list of numbers within {FARTHEST} sides of its image"
        if len(polygon) % 2:
            return "a polygon of an odd length"
    return ""


def wrong_run_lengths(segmentation: dict[str, Any], height: int, width: int) -> str:
    counts: Any = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        return "run lengths of another size"
    if isinstance(counts, str):
        try:
            counts = read_counts(counts)
        except ValueError:
            return "run lengths that are damaged"
    elif not are_numbers(counts, height * width) or not set(map(type, counts)) <= {int}:
        return "run lengths that are not whole numbers of pixels"
    if min(counts, default=-1) < 0 or sum(counts) != height * width:
        return f"run lengths that do not make {height} x {width} pixels"
    return ""


def read_counts(text: str) -> list[int]:
    """Numbers of COCO's compressed run lengths: in five bits a character, lowest first, with a sixth bit on all but the last of a number;
    from the fourth number on, the difference to the last but one.

    Raises:
        ValueError: it is no such text. The decoder would read beyond its end.
    """
    bits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero(bits & 32 == 0)
    if not len(ends) or ends[-1] != len(bits) - 1 or bits.min() < 0 or bits.max() > 63:
        raise ValueError("not run lengths")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # beyond any image, and soon beyond 64 bits
        raise ValueError("not run lengths")
    places = np.arange(len(bits)) - np.repeat(starts, lengths)
    counts = np.add.reduceat((bits & 31) << (5 * places), starts)
    counts -= np.where(bits[ends] & 16, 1 << (5 * lengths), 0)  # the sign
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    found: list[int] = counts.tolist()
    return found


def usable(segmentation: Segmentation, height: int, width: int) -> Segmentation:
    """A mask without what covers nothing: run lengths of background alone, polygons that `covers` denies. Nothing may be left."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        inside = sum((read_counts(counts) if isinstance(counts, str) else counts)[1::2])
        return {"size": [height, width], "counts": counts} if inside else []
    return [polygon for polygon in segmentation if len(polygon) >= 6 and covers(polygon, height, width)]


def covers(polygon: list[float], height: int, width: int) -> bool:
    """Whether a polygon has an area, and pixels of the image in it."""
    xs, ys = polygon[::2], polygon[1::2]
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    area = sum(x * v - u * y for x, y, u, v in zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)) / 2
    wide = abs(area) > 2 * max(right - left, bottom - top)  # than two pixels
    if wide and min(left, top) >= 0 and right <= width and bottom <= height:
        return True  # without asking for it: of all of COCO it would take a minute
    corners = np.array(polygon, np.float64).reshape(-1, 2)
    on_a_line = not wide and np.linalg.matrix_rank(corners - corners[0], tol=0.02) < 2  # where rounding fills some pixels all the same
    return not on_a_line and bool(rle.area(rle.frPyObjects([polygon], height, width)).any())  # type: ignore[union-attr]


def nothing(height: int, width: int) -> Segmentation:
    """The mask that covers nothing, which an empty list of polygons is not to every decoder."""
    return {"size": [height, width], "counts": [height * width]}


def decode(segmentations: Sequence[Segmentation], height: int, width: int) -> Tensor:
    """Polygons or run lengths to masks `[N, H, W]`."""
    whole = [rle.merge(rle.frPyObjects(s, height, width)) if isinstance(s, list) else compressed(s) for s in segmentations]
    if not whole:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    return torch.from_numpy(rearrange(rle.decode(whole), "h w n -> n h w").copy())


def compressed(segmentation: dict[str, Any]) -> dict[str, Any]:
    """Run lengths come as a list of numbers or, compressed, as text."""
    counts = segmentation["counts"]
    return rle.frPyObjects(segmentation, *segmentation["size"]) if isinstance(counts, list) else segmentation  # type: ignore[return-value]


def encode(masks: Tensor) -> list[dict[str, Any]]:
    """Masks `[N, H, W]` to compressed run lengths as they stand in JSON."""
    planes = np.asfortranarray(rearrange(masks, "n h w -> h w n").to(torch.uint8).numpy())
    return [{"size": piece["size"], "counts": piece["counts"].decode()} for piece in rle.encode(planes)]  # type: ignore[union-attr]
