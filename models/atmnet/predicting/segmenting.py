"""From views of an image to the class of each of its pixels, in evaluations and predictions alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HELD = 2**27  # logits of the image's size that may be held at a time; of a larger one they come a band of rows at a time


def segment(model: nn.Module, views: Sequence[Tensor], size: Sequence[int], mirrored: bool = False) -> tuple[Tensor, Tensor]:
    """The most probable class ``[H, W]`` of each pixel of an image of ``size``, by the mean of the probabilities over the views, each also
    mirrored or not, and that probability."""
    height, width = size
    views_logits = _logits(model, views, mirrored)
    first = next(views_logits)
    rows = height if first.shape[1] * height * width <= HELD else max(1, HELD // (first.shape[1] * width))
    logits: Iterable[Tensor] = chain([first], views_logits)
    if rows < height:
        logits = list(logits)  # for every band; of a single one no more is held than a view's
    found = [_most_probable(logits, (height, width), slice(top, min(top + rows, height))) for top in range(0, height, rows)]
    classes, probabilities = zip(*found, strict=True)
    return torch.cat(classes), torch.cat(probabilities) / (len(views) * (1 + mirrored))


def _logits(model: nn.Module, views: Sequence[Tensor], mirrored: bool) -> Iterator[Tensor]:
    for view in views:
        for mirror in (False, True)[: 1 + mirrored]:
            logits = model((view.flip(-1) if mirror else view)[None]).float()
            yield logits.flip(-1) if mirror else logits


def _most_probable(logits: Iterable[Tensor], size: tuple[int, int], rows: slice) -> tuple[Tensor, Tensor]:
    total: Tensor | None = None
    for of_view in logits:
        probabilities = _enlarge(of_view, size, rows)[0].softmax(0)
        total = probabilities if total is None else total + probabilities
    assert total is not None
    most, classes = total.max(0)
    return classes, most


def _enlarge(logits: Tensor, size: tuple[int, int], rows: slice) -> Tensor:
    """Rows of ``F.interpolate(logits, size, mode="bilinear")``."""
    height, width = size
    if rows.stop - rows.start < height:
        held = logits.shape[2]
        y = ((torch.arange(rows.start, rows.stop, device=logits.device) + 0.5) * (held / height) - 0.5).clamp(min=0)
        above = y.long()
        below = (above + 1).clamp(max=held - 1)
        logits = torch.lerp(logits[:, :, above], logits[:, :, below], (y - above)[:, None])
        height = rows.stop - rows.start
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
