"""Classes of pixels over their image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torchvision.utils import draw_segmentation_masks

from .text import Colour

ALPHA = 0.6  # of colours; the rest is the image in grey, so that they look as in the legend
GREY = 128


@cache
def palette(number: int) -> list[Colour]:
    """Distinct colours, each as far as can be from those before it; none is grey."""
    levels = torch.linspace(30, 255, 8).round()
    colours = torch.cartesian_prod(levels, levels, levels)
    colours = colours[colours.amax(1) - colours.amin(1) > 40]
    chosen = [0]
    distance = torch.full((len(colours),), torch.inf)
    while len(chosen) < number:
        distance = distance.minimum((colours - colours[chosen[-1]]).norm(dim=1))
        chosen.append(int(distance.argmax()))
    return [(int(red), int(green), int(blue)) for red, green, blue in colours[chosen].tolist()]


def overlay(image: Tensor, labels: Tensor, colours: Sequence[Colour]) -> Tensor:
    """Draw each class of ``labels [H, W]`` in its colour on the image ``[3, H, W]`` of bytes; other labels leave it as it is."""
    there = [label for label in labels.unique().tolist() if label < len(colours)]
    if not there:
        return image
    masks = torch.stack([labels == label for label in there])
    red, green, blue = image.float()
    grey = (0.299 * red + 0.587 * green + 0.114 * blue).round().byte()
    return draw_segmentation_masks(torch.where(masks.any(0), grey, image), masks, alpha=ALPHA, colors=[colours[label] for label in there])


def tint(colour: Colour) -> Colour:
    """A colour as ``overlay`` has it over mid grey, for a legend."""
    red, green, blue = (round(ALPHA * part + (1 - ALPHA) * GREY) for part in colour)
    return red, green, blue
