"""Images as a network sees them, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from ..images import picture_config
from ..tasks import CLASSIFICATION, DETECTION, about

LONGEST = 4  # times the shorter side, of what is seen in its proportions


class View:
    """The whole image, resized to ``size (height, width)`` and normalised as the model wants it, and the picture of what that is.

    The size of a model of boxes or masks, which takes images in their proportions, is a square of the shorter side.

    Raises:
        ValueError: the model takes clips, or images of other than three channels, or it cannot be told what it takes.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int] | None = None) -> None:
        config = _config(model)
        self.size: tuple[int, int] = size or config["input_size"][1:]
        self.mean, self.std = (rearrange(torch.tensor(config[name]), "c -> c 1 1") for name in ("mean", "std"))
        self.transform: Any = create_transform(
            (3, *self.size), interpolation=config["interpolation"], mean=config["mean"], std=config["std"], crop_pct=1.0, crop_mode="squash"
        )

    def pixels(self, image: Image.Image) -> Tensor:
        """``[3, H, W]``"""
        pixels: Tensor = self.transform(image)
        return pixels

    def picture(self, pixels: Tensor) -> Image.Image:
        values = (pixels * self.std + self.mean).clamp(0, 1) * 255
        return Image.fromarray(rearrange(values.round(), "c h w -> h w c").numpy().astype(np.uint8))


def _config(model: nn.Module) -> dict[str, Any]:
    described = about(model)
    if described.clips is not None:
        raise ValueError("this is a classifier of videos, and what is looked at here are images: atmnet.offsets.collect takes clips")
    if described.task == CLASSIFICATION:
        return picture_config(model)
    side = described.size[0]
    return dict(input_size=(3, side, side), interpolation="bilinear", mean=described.mean, std=described.std)


def size_in_proportion(model: nn.Module, image: Image.Image) -> tuple[int, int]:
    """The ``size`` at which a model sees one image in its proportions, as far as it is not more than ``LONGEST`` times as long as wide:
    the model's along the shorter side, and of a detector not more than it takes along the longer."""
    described = about(model)
    proportion = min(max(image.width / image.height, 1 / LONGEST), LONGEST)
    width, height = max(proportion, 1), max(1 / proportion, 1)
    side: float = min(described.size)
    if described.task == DETECTION:
        side = min(side, described.size[1] / max(width, height))
    return round(side * height), round(side * width)
