"""Independent definitions of the gather: the paper's sum written out, and torchvision's deformable convolution."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor
from torchvision.ops import deform_conv2d


def dense_gather(x: Tensor, offset: Tensor, axis: str) -> Tensor:
    """y[p] = sum over all q of x[q] * max(0, 1 - |p + offset - q|), as a dense matrix per line and channel; of tokens ``[B, *axes, C]``."""
    dim = x.ndim - 2 - "wht".index(axis)
    x, offset = x.transpose(dim, -2), offset.transpose(dim, -2)
    positions = torch.arange(x.shape[-2], dtype=x.dtype)
    target = positions[:, None] + repeat(offset.to(x.dtype), "... w g -> ... w (g s)", s=x.shape[-1] // offset.shape[-1])
    hat = (1 - (target.unsqueeze(-1) - positions).abs()).clamp_min(0)  # [B, ..., W, C, W]
    return torch.einsum("...wcq,...qc->...wc", hat, x).transpose(dim, -2)


def deformable_gather(x: Tensor, offset: Tensor, axis: str) -> Tensor:
    """A 1x1 deformable convolution with one offset group per channel and the identity as its weight, as the published code uses."""
    C = x.shape[3]
    along = repeat(offset, "b h w g -> b (g s) h w", s=C // offset.shape[3])
    across = torch.zeros_like(along)
    vertical, horizontal = (across, along) if axis == "w" else (along, across)
    pairs = rearrange([vertical, horizontal], "two b c h w -> b (c two) h w").contiguous()
    weight = rearrange(torch.eye(C, dtype=x.dtype), "o i -> o i 1 1")
    return rearrange(deform_conv2d(rearrange(x, "b h w c -> b c h w"), pairs, weight), "b c h w -> b h w c")
