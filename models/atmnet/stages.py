"""Stages of ATMNet (paper, section 3.3): blocks of Active Token Mixers, of images and, frame by frame or along time, of videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath, Mlp
from timm.models import checkpoint
from torch import Tensor, nn

from atm_triton import ActiveTokenMixer, OffsetFC

LAYER_NORM_EPS = 1e-5

torch.fx.wrap("rearrange")  # symbolic tracing records its calls, for it looks at shapes, which proxies do not have


class Downsample(nn.Conv2d):
    """Convolution 3x3 of stride 2, ``[B, H, W, dim_in] -> [B, ceil(H / 2), ceil(W / 2), dim]``."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__(dim_in, dim, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return downsample(x, self.weight, self.bias)


@torch.fx.wrap
def downsample(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = rearrange(x, "b h w c -> b c h w")
    if x.shape[0] > 1 or x.device.type != "cpu" or not torch.compiler.is_compiling():
        return to_channels_last(F.conv2d(x, weight, bias, stride=2, padding=1))
    # For one image on CPU, PyTorch chooses among convolutions by the size of the image, and a graph that holds that choice is compiled
    # again for every class of sizes. A GEMM holds for all.
    patches = rearrange(F.unfold(x, kernel_size=3, stride=2, padding=1), "b patch n -> b n patch")
    y = F.linear(patches, rearrange(weight, "o i h w -> o (i h w)"), bias)
    return rearrange(y, "b (h w) c -> b h w c", h=(x.shape[2] + 1) // 2)


class PEG(nn.Conv2d):
    """Position encoding generator: a depthwise 3x3 convolution, added to its input, tokens ``[B, N, C]`` of an image ``height`` tall."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int) -> Tensor:  # type: ignore[override]
        # Through a view of the weight its gradient gets the weight's own strides: those of the convolution's, which differ along the 1, DDP
        # would copy, and warn.
        weight = rearrange(rearrange(self.weight, "c 1 kh kw -> c (kh kw)"), "c (kh kw) -> c 1 kh kw", kh=3)
        y = self._conv_forward(rearrange(x, "b (h w) c -> b c h w", h=height), weight, self.bias)
        return x + rearrange(y, "b c h w -> b (h w) c")


class Block(nn.Module):
    """``x + mix(norm(x))``, then ``x + mlp(norm(x))``. Some blocks also own the layer that makes new offsets for the stage."""

    def __init__(self, dim: int, mlp_ratio: float, share: int, new_offset: bool, drop_path: float, proj_drop: float, axes: int = 2) -> None:
        super().__init__()
        self.offset = OffsetFC(dim, share, LAYER_NORM_EPS, axes) if new_offset else None
        self.norm1 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mixer = ActiveTokenMixer(dim, share, own_offset=False, proj_drop=proj_drop, axes=axes)
        self.norm2 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, size: Sequence[int], offset: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens ``[B, N, C]`` of axes ``size`` to tokens with the stage's offsets ``[B, *size, axes * G]``, and the offsets if the block
        makes new ones.

        All parameters are used in here, as FSDP gathers a block's, and checkpointing frees its activations, around this call alone.
        """
        new = None
        if self.offset is not None:
            offset = new = self.offset(x.unflatten(1, size))
        y = self.mixer(self.norm1(x).unflatten(1, size), offset)
        x = x + self.drop_path(y.flatten(1, -2))
        return x + self.drop_path(self.mlp(self.norm2(x))), new


class Stage(nn.Module):
    """Blocks of one resolution, after a downsampling if ``dim_in`` is given. Every ``period`` blocks new offsets are made,
    with position from the PEG.

    Between the blocks tokens are ``[B, N, C]``: Inductor takes four dimensions before a convolution for NCHW, and would store the channels
    of a token far apart.
    """

    axes = 2

    def __init__(
        self,
        dim_in: int | None,
        dim: int,
        mlp_ratio: float,
        share: int,
        period: int,
        drop_path: Sequence[float],
        proj_drop: float,
        peg: bool = True,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = Downsample(dim_in, dim) if dim_in else None
        self.peg = PEG(dim) if peg else None
        last = len(drop_path) - 1  # it would make offsets that it alone uses, and takes the stage's latest instead
        makers = [j for j in range(len(drop_path)) if j == 0 or (j % period == 0 and j != last)]
        self.blocks: Any = nn.ModuleList(
            Block(dim, mlp_ratio, share, j in makers, rate, proj_drop, self.axes) for j, rate in enumerate(drop_path)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsampled(x)
        size = x.shape[1:-1]
        x = x.flatten(1, -2)
        offset = None
        for block in self.blocks:
            if block.offset is not None:
                x, offset = self.placed(x, size), None
            x, new = checkpoint(block, x, size, offset) if self.grad_checkpointing else block(x, size, offset)
            offset = offset if new is None else new
        return x.unflatten(1, size)

    def downsampled(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)

    def placed(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Tokens ``[B, N, C]`` that know their position."""
        return x if self.peg is None else self.peg(x, size[0])


class FrameStage(Stage):
    """A stage of videos ``[B, T, H, W, C]`` that takes every frame for an image of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class ClipStage(Stage):
    """A stage of videos ``[B, T, H, W, C]`` whose mixers read along time too, and count all frames in the fusion's mean."""

    axes = 3

    def downsampled(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def placed(self, x: Tensor, size: Sequence[int]) -> Tensor:
        if self.peg is None:
            return x
        frames = x.unflatten(1, (size[0], size[1] * size[2])).flatten(0, 1)
        return self.peg(frames, size[1]).unflatten(0, (x.shape[0], size[0])).flatten(1, 2)


def to_channels_last(x: Tensor) -> Tensor:
    return rearrange(x, "b c h w -> b h w c").contiguous()
