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


class View:
    """The whole image, resized to ``size (height, width)`` and normalised as the model wants it, and the picture of what that is.

    Raises:
        ValueError: the model takes images of other than three channels.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int] | None = None) -> None:
        config = picture_config(model)
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
