"""Classes of pixels over their image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale
from torchvision.utils import draw_segmentation_masks

from .text import Colour

STRENGTH = 0.7  # of a class's colour over its image
GREYS = 80, 200  # to which the image under the colours is narrowed, so that these stay what the legend shows
TO_LMS = ((0.4122, 0.5363, 0.0514), (0.2119, 0.6807, 0.1074), (0.0883, 0.2817, 0.6300))
TO_OKLAB = ((0.2105, 0.7936, -0.0041), (1.9780, -2.4286, 0.4506), (0.0259, 0.7828, -0.8087))


def oklab(colours: Tensor) -> Tensor:
    """Lightness and the two axes of colour of bytes `[N, 3]`, in which equal distances look equal (Ottosson's OKLab)."""
    linear = (colours / 255) ** 2.2
    return (linear @ torch.tensor(TO_LMS).T) ** (1 / 3) @ torch.tensor(TO_OKLAB).T


@cache
def palette(number: int) -> list[Colour]:
    """Distinct colours, each looking as unlike those before it as can be; none is grey, nearly black or nearly white."""
    levels = torch.linspace(0, 255, 12).round()
    colours = torch.cartesian_prod(levels, levels, levels)
    places = oklab(colours)
    usable = (places[:, 1:].norm(dim=1) > 0.07) & (places[:, 0] > 0.35) & (places[:, 0] < 0.93)
    colours, places = colours[usable], places[usable]
    chosen = [int((places - oklab(torch.tensor([[40.0, 110.0, 220.0]]))).norm(dim=1).argmin())]  # a blue
    distance = torch.full((len(colours),), torch.inf)
    while len(chosen) < number:
        distance = distance.minimum((places - places[chosen[-1]]).norm(dim=1))
        chosen.append(int(distance.argmax()))
    return [(int(red), int(green), int(blue)) for red, green, blue in colours[chosen].tolist()]


def overlay(image: Tensor, labels: Tensor, colours: Sequence[Colour]) -> Tensor:
    """Lay over the image `[3, H, W]` of bytes, in grey, each class of `labels [H, W]` in its colour; other labels leave it as it is."""
    there = [label for label in labels.unique().tolist() if label < len(colours)]
    if not there:
        return image
    masks = torch.stack([labels == label for label in there])
    low, high = GREYS
    grey = low + rgb_to_grayscale(image).float() * ((high - low) / 255)
    beneath = torch.where(masks.any(0), grey.round().byte(), image)
    return draw_segmentation_masks(beneath, masks, alpha=STRENGTH, colors=[colours[label] for label in there])


def tint(colour: Colour) -> Colour:
    """A colour as ``overlay`` has it over middle grey, for a legend."""
    red, green, blue = (round(STRENGTH * part + (1 - STRENGTH) * sum(GREYS) / 2) for part in colour)
    return red, green, blue
