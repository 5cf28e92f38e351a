"""Transforms of an image and its labels: the paper's augmentation in training, resized views in evaluation.

An image is `tv_tensors.Image [3, H, W]` of bytes, labels are `tv_tensors.Mask [H, W]` of bytes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from .colours import PhotometricDistortion, draw

IGNORED = 255  # the label of pixels that do not count

ELONGATION = 4  # the longer side of a resized image is at most so many times what the shorter should be


def rescale(x: Tensor, side: int, ratio: float = 1.0) -> Tensor:
    """An image, bilinearly without antialiasing, or labels, to the nearest, at the largest size within `ELONGATION * side` by `side`
    times `ratio` in its proportions: as mmsegmentation and OpenCV do it."""
    longer, shorter = int(ELONGATION * side * ratio), int(side * ratio)
    scale = min(longer / max(x.shape[-2:]), shorter / min(x.shape[-2:]))
    size = [max(1, int(length * scale + 0.5)) for length in x.shape[-2:]]
    if isinstance(x, tv_tensors.Mask):
        return v2.functional.resize(x, size)
    resized = F.interpolate(x.as_subclass(Tensor)[None].float(), size, mode="bilinear")[0]  # of bytes themselves it is less exact
    return tv_tensors.wrap(resized.round().byte(), like=x)


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


class EvalTransform:
    """The image normalised at each scale. At scale 1 its shorter side is `size`, its longer at most four times that."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], scales: Sequence[float] = (1.0,)) -> None:
        self.size, self.scales = size, scales
        self.normalise = normalise(mean, std)

    def __call__(self, image: Tensor) -> list[Tensor]:
        return [self.normalise(rescale(image, self.size, scale)) for scale in self.scales]


def normalise(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    dtypes = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return v2.Compose([v2.ToDtype(dtypes, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()])
