"""Every operator in plain PyTorch: the specification, and the path that runs where the Triton kernels do not.

Layout is channels last, ``x [B, H, W, C]``. Offsets are in tokens. Arithmetic is in float32 at least, results in the input's dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# ---- offset_fc: LayerNorm(x) @ weight.T + bias


def offset_fc(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    return offset_fc_forward(x, norm_weight, norm_bias, weight, bias, eps)[0]


def offset_fc_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The offsets, and each token's mean and reciprocal deviation ``[B, H, W]``, which the backward needs."""
    acc = accumulation_dtype(x)
    normed, mean, rstd = torch.native_layer_norm(x.to(acc), (x.shape[-1],), norm_weight.to(acc), norm_bias.to(acc), eps)
    return F.linear(normed.to(x.dtype), weight, bias), mean.squeeze(-1), rstd.squeeze(-1)


def offset_fc_backward(
    doffset: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, norm_weight, norm_bias, weight and bias."""
    acc = accumulation_dtype(x)
    xhat = (x.to(acc) - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
    scaled = (doffset.to(x.dtype) @ weight).to(acc) * norm_weight.to(acc)
    dx = (scaled - scaled.mean(-1, keepdim=True) - xhat * (scaled * xhat).mean(-1, keepdim=True)) * rstd.unsqueeze(-1)
    doffset = rearrange(doffset, "b h w n -> (b h w) n").to(acc)
    product = doffset.mT @ rearrange(xhat, "b h w c -> (b h w) c")
    return dx.to(x.dtype), *offset_fc_parameter_grads(product, doffset.sum(0), norm_weight, norm_bias, weight)


def offset_fc_parameter_grads(
    product: Tensor, dbias: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All four parameter gradients follow from ``product = doffset.T @ xhat`` and ``dbias``: the norm is affine in xhat."""
    dnorm_weight = (weight.to(product.dtype) * product).sum(0)
    dnorm_bias = dbias @ weight.to(product.dtype)
    dweight = product * norm_weight.to(product.dtype) + dbias[:, None] * norm_bias.to(product.dtype)
    return dnorm_weight.to(norm_weight.dtype), dnorm_bias.to(norm_bias.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)


# ---- axial_gather: y[p] = sum over q of x[q] * max(0, 1 - |p + offset - q|) along one axis


def _taps(x: Tensor, offset: Tensor, axis: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The two tokens that each offset falls between, as rows of the S channels that share it.

    Returns the row indices of both taps and whether each is inside, all ``[B, H, W, G]``, and the weight of the second. Rows rather than
    elements make the index tensors S times smaller. The floor is taken of the offset alone, not of position + offset, so that the
    weight keeps all its bits wherever the token stands.
    """
    B, H, W, _ = x.shape
    G = offset.shape[-1]
    i = torch.arange(H, device=x.device)[:, None, None]
    j = torch.arange(W, device=x.device)[:, None]
    position, length, step = (j, W, 1) if axis == "w" else (i, H, W)
    # Past the border by one token or more, all offsets give zero: clamping there keeps the integers small.
    offset = offset.to(accumulation_dtype(x)).clamp(-length - 1, length + 1)
    floor = offset.floor()
    first = torch.where(floor.isnan(), -2, position + floor.long())  # a NaN points outside; its weight stays NaN
    token = torch.arange(B, device=x.device)[:, None, None, None] * (H * W) + i * W + j
    group = torch.arange(G, device=x.device)

    def row(tap: Tensor) -> Tensor:
        return (token + (tap.clamp(0, length - 1) - position) * step) * G + group

    second = first + 1
    return row(first), row(second), (first >= 0) & (first < length), (second >= 0) & (second < length), offset - floor


def _read(rows: Tensor, index: Tensor, inside: Tensor) -> Tensor:
    values = F.embedding(index, rows)  # rows[index], a fifth faster in eager
    # where, not a product: an infinity at the clamped row must not become a NaN
    return torch.where(inside.unsqueeze(-1), values, values.new_zeros(()))


def axial_gather(x: Tensor, offset: Tensor, axis: str) -> Tensor:
    first, second, in_first, in_second, t = _taps(x, offset, axis)
    rows = rearrange(x, "b h w (g s) -> (b h w g) s", g=offset.shape[-1])
    a, b = (_read(rows, *tap).to(t.dtype) for tap in ((first, in_first), (second, in_second)))
    return rearrange(a + t.unsqueeze(-1) * (b - a), "b h w g s -> b h w (g s)").to(x.dtype)


def axial_gather_backward(dy: Tensor, x: Tensor, offset: Tensor, axis: str) -> tuple[Tensor, Tensor]:
    """Gradients of x and offset; the slope in the offset is that of the segment it falls in."""
    first, second, in_first, in_second, t = _taps(x, offset, axis)
    G = offset.shape[-1]
    rows = rearrange(x, "b h w (g s) -> (b h w g) s", g=G)
    dy = rearrange(dy, "b h w (g s) -> b h w g s", g=G).to(t.dtype)
    a, b = (_read(rows, *tap).to(t.dtype) for tap in ((first, in_first), (second, in_second)))
    doffset = (dy * (b - a)).sum(-1)
    # One flat scatter of both taps: on CPU this is what Inductor compiles best, and eager's fastest too.
    zero = t.new_zeros(())
    index = torch.stack([first, second]).unsqueeze(-1) * rows.shape[1] + torch.arange(rows.shape[1], device=x.device)
    weight = torch.stack([torch.where(in_first, 1 - t, zero), torch.where(in_second, t, zero)]).unsqueeze(-1)
    dx = t.new_zeros(x.numel()).scatter_add(0, index.flatten(), (weight * dy).flatten())
    return dx.view(x.shape).to(x.dtype), doffset.to(offset.dtype)


# ---- branch_fusion: softmax over the three branches, per channel


def branch_fusion(w: Tensor, h: Tensor, c: Tensor, logits: Tensor) -> Tensor:
    alpha = rearrange(logits.to(accumulation_dtype(w)).softmax(1), "b k c -> k b 1 1 c")
    return (alpha[0] * w + alpha[1] * h + alpha[2] * c).to(w.dtype)


def branch_fusion_backward(dy: Tensor, w: Tensor, h: Tensor, c: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, h, c and logits."""
    acc = accumulation_dtype(w)
    alpha = rearrange(logits.to(acc).softmax(1), "b k c -> k b 1 1 c")
    dalpha = torch.stack([reduce(dy.to(acc) * branch, "b h w c -> b c", "sum") for branch in (w, h, c)], 1)
    dw, dh, dc = ((alpha[k] * dy).to(w.dtype) for k in range(3))
    return dw, dh, dc, softmax_backward(dalpha, logits)


def softmax_backward(dalpha: Tensor, logits: Tensor) -> Tensor:
    """Gradient of the logits ``[B, 3, C]`` from that of their softmax, which is accumulated in float32."""
    alpha = logits.to(dalpha.dtype).softmax(1)
    return (alpha * (dalpha - (alpha * dalpha).sum(1, keepdim=True))).to(logits.dtype)
