"""The definition of every operator in plain PyTorch: the specification, which tests hold everything else to.

Layout is channels last, ``x [B, *axes, C]``: of sequences ``[B, W, C]``, of images ``[B, H, W, C]``, of videos and volumes
``[B, T, H, W, C]``. What there is for each axis comes in the order w, h, t. Offsets are in tokens. Arithmetic is in float32 at least,
results in the input's dtype. Autograd of these functions defines the gradients.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from .axes import AXES, offsets_by_axis


def accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def offset_fc(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm(x) @ weight.T + bias"""
    acc = accumulation_dtype(x)
    normed = F.layer_norm(x.to(acc), norm_weight.shape, norm_weight.to(acc), norm_bias.to(acc), eps)
    return F.linear(normed.to(x.dtype), weight, bias)


def axial_gather(x: Tensor, offset: Tensor, axis: str) -> Tensor:
    """y[p] = sum over q of x[q] * max(0, 1 - |p + offset - q|) along one axis, of which only the q on both sides of p + offset count.

    Infinite offsets point outside and give zero, NaN gives NaN; an infinite x reaches only who reads it.
    """
    dim = x.ndim - 2 - AXES.index(axis)
    x, offset = x.movedim(dim, -2), offset.movedim(dim, -2)
    length, acc = x.shape[-2], accumulation_dtype(x)
    offset = repeat(offset.to(acc), "... g -> ... (g s)", s=x.shape[-1] // offset.shape[-1])
    offset = offset.clamp(-length - 1, length + 1)  # outside all the same, and a small integer
    floor = offset.floor()
    first = torch.arange(length, device=x.device)[:, None] + floor.nan_to_num(-length - 1).long()

    def read(position: Tensor) -> Tensor:
        inside = (position >= 0) & (position < length)
        return torch.where(inside, x.gather(-2, position.clamp(0, length - 1)), 0).to(acc)

    a, b = read(first), read(first + 1)
    return (a + (offset - floor) * (b - a)).to(x.dtype).movedim(-2, dim)


def branch_fusion(w: Tensor, h: Tensor | None, c: Tensor, logits: Tensor, t: Tensor | None = None) -> Tensor:
    """Softmax over the branches, per channel, in the order w, h, t, c: alpha_w w + alpha_h h + alpha_t t + alpha_c c"""
    branches = [branch for branch in (w, h, t, c) if branch is not None]
    alpha = logits.to(accumulation_dtype(w)).softmax(1).view(*logits.shape[:2], *[1] * (w.ndim - 2), logits.shape[2])
    return reduce(add, (a * branch for a, branch in zip(alpha.unbind(1), branches, strict=True))).to(w.dtype)


def bottleneck(channels: int) -> int:
    """Hidden width of the layers that make the fusion's logits."""
    return max(1, channels // 4)


def token_mix(
    x: Tensor,
    offset: Tensor,
    weight_w: Tensor,
    bias_w: Tensor,
    weight_h: Tensor | None,
    bias_h: Tensor | None,
    weight_c: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    weight_t: Tensor | None = None,
    bias_t: Tensor | None = None,
) -> Tensor:
    """The whole mixer, as the paper has it; of sequences without h, of videos and volumes with t."""
    fcs: Any = {"w": (weight_w, bias_w), "h": (weight_h, bias_h), "t": (weight_t, bias_t)}
    branches: Any = {axis: F.linear(axial_gather(x, part, axis), *fcs[axis]) for part, axis in offsets_by_axis(offset)}
    c = F.linear(x, weight_c)
    s = sum(branches.values(), c).flatten(1, -2).mean(1)
    logits = F.linear(F.gelu(F.linear(s, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)
    y = branch_fusion(branches["w"], branches.get("h"), c, rearrange(logits, "b (c k) -> b k c", k=x.ndim - 1), branches.get("t"))
    return F.linear(y, proj_weight, proj_bias)
