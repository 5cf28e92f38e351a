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

IGNORED = 255  # the label of pixels that do not count

ELONGATION = 4  # the longer side of a resized image is at most so many times what the shorter should be


class PhotometricDistort(v2.RandomPhotometricDistort):
    """SSD's brightness, contrast, saturation and hue; the channels keep their order, as usual in segmentation."""

    def __init__(self) -> None:
        super().__init__(hue=(-0.1, 0.1))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return super().make_params(flat_inputs) | {"channel_permutation": None}


class DiverseCrop:
    """A random crop, drawn again up to ten times while one class covers more than three quarters of its labelled pixels."""

    TRIES, LARGEST_SHARE = 10, 0.75

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
        shorter = range(size // 2, 2 * size + 1) if augment else [size]
        self.resize = v2.RandomShortestSize(list(shorter), max_size=2 * ELONGATION * size)
        self.crop = DiverseCrop(size)
        self.distort = v2.Compose([v2.RandomHorizontalFlip(0.5), PhotometricDistort()] if augment else [v2.Identity()])
        self.normalise = normalise(mean, std)

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        image, labels = self.crop(*self.resize(image, labels))
        image, labels = self.normalise(*self.distort(image, labels))
        missing = (0, self.size - labels.shape[1], 0, self.size - labels.shape[0])
        return F.pad(image, missing), F.pad(labels, missing, value=IGNORED)


class EvalTransform:
    """The image normalised at each scale. At scale 1 its shorter side is `size`, its longer at most four times that."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], scales: Sequence[float] = (1.0,)) -> None:
        self.resizes = [v2.Resize(round(scale * size), max_size=round(scale * ELONGATION * size)) for scale in scales]
        self.normalise = normalise(mean, std)

    def __call__(self, image: Tensor) -> list[Tensor]:
        return [self.normalise(resize(image)) for resize in self.resizes]


def normalise(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    dtypes = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return v2.Compose([v2.ToDtype(dtypes, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()])
