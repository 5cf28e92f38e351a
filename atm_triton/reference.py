"""The definition of every operator in plain PyTorch: the specification, which tests hold everything else to.

Layout is channels last, ``x [B, H, W, C]``. Offsets are in tokens. Arithmetic is in float32 at least, results in the input's dtype.
Autograd of these functions defines the gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor


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
    if axis == "h":
        return axial_gather(x.transpose(1, 2), offset.transpose(1, 2), "w").transpose(1, 2)
    W, acc = x.shape[2], accumulation_dtype(x)
    offset = repeat(offset.to(acc), "b h w g -> b h w (g s)", s=x.shape[3] // offset.shape[3])
    offset = offset.clamp(-W - 1, W + 1)  # outside all the same, and a small integer
    floor = offset.floor()
    first = torch.arange(W, device=x.device)[:, None] + floor.nan_to_num(-W - 1).long()

    def read(position: Tensor) -> Tensor:
        inside = (position >= 0) & (position < W)
        return torch.where(inside, x.gather(2, position.clamp(0, W - 1)), 0).to(acc)

    a, b = read(first), read(first + 1)
    return (a + (offset - floor) * (b - a)).to(x.dtype)


def branch_fusion(w: Tensor, h: Tensor, c: Tensor, logits: Tensor) -> Tensor:
    """Softmax over the three branches, per channel: alpha_w w + alpha_h h + alpha_c c"""
    alpha = rearrange(logits.to(accumulation_dtype(w)).softmax(1), "b k c -> k b 1 1 c")
    return (alpha[0] * w + alpha[1] * h + alpha[2] * c).to(w.dtype)


def bottleneck(channels: int) -> int:
    """Hidden width of the layers that make the fusion's logits."""
    return max(1, channels // 4)


def token_mix(
    x: Tensor,
    offset: Tensor,
    weight_w: Tensor,
    bias_w: Tensor,
    weight_h: Tensor,
    bias_h: Tensor,
    weight_c: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """The whole mixer, as the paper has it."""
    offset_w, offset_h = offset.chunk(2, -1)
    w = F.linear(axial_gather(x, offset_w, "w"), weight_w, bias_w)
    h = F.linear(axial_gather(x, offset_h, "h"), weight_h, bias_h)
    c = F.linear(x, weight_c)
    s = (w + h + c).mean((1, 2))
    logits = F.linear(F.gelu(F.linear(s, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)
    y = branch_fusion(w, h, c, rearrange(logits, "b (c k) -> b k c", k=3))
    return F.linear(y, proj_weight, proj_bias)
