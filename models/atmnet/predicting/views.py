"""Images as a segmenter sees them, in evaluations and predictions alike: resized as mmsegmentation and OpenCV do it, and normalised.

An image is ``tv_tensors.Image [3, H, W]`` of bytes, labels are ``tv_tensors.Mask [H, W]`` of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

ELONGATION = 4  # the longer side of a resized image is at most so many times what the shorter should be
ONE_SCALE = (1.0,)
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # each also mirrored


def rescale(x: Tensor, side: int, ratio: float = 1.0) -> Tensor:
    """An image, bilinearly without antialiasing, or labels, to the nearest, at the largest size within ``ELONGATION * side`` by ``side``
    times ``ratio`` in its proportions."""
    longer, shorter = int(ELONGATION * side * ratio), int(side * ratio)
    return times(x, min(longer / max(x.shape[-2:]), shorter / min(x.shape[-2:])))


def times(x: Tensor, scale: float) -> Tensor:
    """An image or labels so many times as large."""
    size = [max(1, int(length * scale + 0.5)) for length in x.shape[-2:]]
    if isinstance(x, tv_tensors.Mask):
        return v2.functional.resize(x, size)
    resized = F.interpolate(x.as_subclass(Tensor)[None].float(), size, mode="bilinear")[0]  # of bytes themselves it is less exact
    return tv_tensors.wrap(resized.round().byte(), like=x)


class EvalTransform:
    """The image normalised at each scale. At scale 1 its shorter side is ``size``, its longer at most four times that."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], scales: Sequence[float] = ONE_SCALE) -> None:
        self.size, self.scales = size, scales
        self.normalise = normalise(mean, std)

    def __call__(self, image: Tensor) -> list[Tensor]:
        return [self.normalise(rescale(image, self.size, scale)) for scale in self.scales]


def normalise(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    dtypes = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return v2.Compose([v2.ToDtype(dtypes, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()])
