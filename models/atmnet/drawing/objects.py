"""Boxes and masks of objects on their image."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from .text import Colour, font_file, in_a_line, text_size

SHOWN_FROM = 0.3  # the score of a detection
LEGIBLE = 480  # pixels of the longer side below which an image is enlarged, for its captions
LONGEST = 2048  # pixels of the longer side above which a picture is smaller than its image


def colour(label: int) -> Colour:
    """Neighbouring labels get hues far apart: steps of the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_objects(image: Tensor, boxes: Tensor, labels: Sequence[int], captions: Sequence[str], masks: Iterable[Tensor] = ()) -> Tensor:
    """Objects on an image ``[3, H, W]`` of bytes, each label in a colour of its own: boxes ``[N, 4]`` with corners x1, y1, x2, y2, and
    masks ``[H, W]``, if any."""
    if not len(boxes):
        return image
    colours = [colour(label) for label in labels]
    for mask, fill in zip(masks, colours, strict=False):  # one by one: together, they would be black where they overlap
        if mask.any():
            image = draw_segmentation_masks(image, mask, alpha=0.45, colors=[fill])
    height, width = image.shape[-2:]
    size = text_size(width, height)
    texts: list[str] = [in_a_line(caption) for caption in captions]
    return draw_bounding_boxes(
        image,
        torch.as_tensor(boxes),
        texts,
        colors=colours,
        width=max(2, size // 6),
        font=font_file(size),  # type: ignore[arg-type]  # Pillow, which gets it, reads files too
        font_size=size,
        fill_labels=True,
    )
