"""Transforms of an image and its labels: the paper's augmentation in training. What evaluations see, atmnet.predicting.views has.

An image is `tv_tensors.Image [3, H, W]` of bytes, labels are `tv_tensors.Mask [H, W]` of bytes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from atmnet.predicting.views import normalise, rescale
from torch import Tensor
from torchvision.transforms import v2

from .colours import PhotometricDistortion, draw

IGNORED = 255  # the label of pixels that do not count


class RandomRescale:
    """Image and labels at a ratio between two."""

    def __init__(self, side: int, ratios: tuple[float, float]) -> None:
        self.side, self.ratios = side, ratios

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        ratio = draw(*self.ratios)
        return rescale(image, self.side, ratio), rescale(labels, self.side, ratio)


class DiverseCrop:
    """A random crop, drawn again up to ten times while one class covers three quarters of its labelled pixels or more."""

    TRIES, LARGEST_SHARE = 11, 0.75

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        height, width = (min(self.size, length) for length in labels.shape)
        for _ in range(self.TRIES):
            top, left = (int(torch.randint(whole - part + 1, ())) for whole, part in zip(labels.shape, (height, width), strict=True))
            counts = labels[top : top + height, left : left + width].flatten().bincount(minlength=IGNORED + 1)[:IGNORED]
            if counts.max() < self.LARGEST_SHARE * counts.sum():
                break
        return (
            v2.functional.crop(image, top, left, height, width),
            v2.functional.crop(labels, top, left, height, width),
        )


class TrainTransform:
    """Augments to a square of `size` pixels: the image normalised and 0 where it does not reach, labels `int64`.

    Without `augment`, an image is resized so that its shorter side is `size`, and cropped at random.
    """

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], augment: bool = True) -> None:
        self.size = size
        self.resize: Any = RandomRescale(size, (0.5, 2.0) if augment else (1.0, 1.0))
        self.crop = DiverseCrop(size)
        self.distort = v2.Compose([v2.RandomHorizontalFlip(0.5), PhotometricDistortion()] if augment else [v2.Identity()])
        self.normalise = normalise(mean, std)

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        image, labels = self.crop(*self.resize(image, labels))
        image, labels = self.normalise(*self.distort(image, labels))
        missing = (0, self.size - labels.shape[1], 0, self.size - labels.shape[0])
        return F.pad(image, missing), F.pad(labels, missing, value=IGNORED)
