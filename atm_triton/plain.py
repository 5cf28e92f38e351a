"""The operators' tuned PyTorch path: what runs on a CPU, under export, and wherever there are no kernels.

Forward and backward are written out for the operators, whose backward is an operator too. ``axial_gather`` and ``token_mix`` are ordinary
functions besides, that autograd differentiates and torch.compile fuses. reference.py says what all of it computes.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .algebra import (
    Gradients,
    Weights,
    branch_weights,
    branch_weights_backward,
    fold,
    fold_backward,
    pooled,
    shift,
    softmax_backward,
    unfolded_backward,
)
from .axes import as_maps, offsets_by_axis
from .reference import accumulation_dtype

# ---- offset_fc


def offset_fc_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The offsets, and each token's mean and reciprocal deviation ``[B, *axes]``, which the backward needs."""
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
    doffset = doffset.flatten(0, -2).to(acc)
    dscaled_weight = doffset.mT @ xhat.flatten(0, -2)
    return dx.to(x.dtype), *offset_fc_parameter_grads(dscaled_weight, doffset.sum(0), norm_weight, norm_bias, weight)


def offset_fc_parameter_grads(
    dscaled_weight: Tensor, dbias: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four parameter gradients follow from that of ``weight * norm_weight``, ``doffset.T @ xhat``, and ``dbias``."""
    dnorm_weight = (weight.to(dscaled_weight.dtype) * dscaled_weight).sum(0)
    dnorm_bias = dbias @ weight.to(dscaled_weight.dtype)
    dweight = dscaled_weight * norm_weight.to(dscaled_weight.dtype) + dbias[:, None] * norm_bias.to(dscaled_weight.dtype)
    return dnorm_weight.to(norm_weight.dtype), dnorm_bias.to(norm_bias.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)


# ---- axial_gather


def _taps(dtype: torch.dtype, offset: Tensor, axis: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The two tokens that each offset falls between, as rows of the S channels that share it.

    Returns the row indices of both taps and whether each is inside, all ``[B, H, W, G]``, and the weight of the second. Rows rather than
    elements make the index tensors S times smaller. The floor is taken of the offset alone, not of position + offset, so that the
    weight keeps all its bits wherever the token stands.
    """
    B, H, W, G = offset.shape
    device = offset.device
    i = torch.arange(H, device=device)[:, None, None]
    j = torch.arange(W, device=device)[:, None]
    position, length, step = (j, W, 1) if axis == "w" else (i, H, W)
    # Past the border by one token or more, all offsets give zero: clamping there keeps the integers small.
    offset = offset.to(torch.promote_types(dtype, torch.float32)).clamp(-length - 1, length + 1)
    floor = offset.floor()
    first = torch.where(floor.isnan(), -2, position + floor.long())  # a NaN points outside; its weight stays NaN
    token = torch.arange(B, device=device)[:, None, None, None] * (H * W) + i * W + j
    group = torch.arange(G, device=device)

    def row(tap: Tensor) -> Tensor:
        return (token + (tap.clamp(0, length - 1) - position) * step) * G + group

    second = first + 1
    return row(first), row(second), (first >= 0) & (first < length), (second >= 0) & (second < length), offset - floor


def _read(rows: Tensor, index: Tensor, inside: Tensor) -> Tensor:
    values = F.embedding(index, rows)  # rows[index], a fifth faster in eager
    # where, not a product: an infinity at the clamped row must not become a NaN
    return torch.where(inside.unsqueeze(-1), values, values.new_zeros(()))


def _read_both(x: Tensor, taps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The first tap's value, and how much the second's is larger, ``[B, H, W, G, S]``."""
    first, second, in_first, in_second, t = taps
    rows = x.reshape(-1, x.shape[-1] // t.shape[-1])
    a, b = (_read(rows, *tap).to(t.dtype) for tap in ((first, in_first), (second, in_second)))
    return a, b - a


def _scatter(dx: Tensor, dy: Tensor, taps: tuple[Tensor, ...]) -> Tensor:
    """``dx`` plus each tap's share of ``dy [B, H, W, G, S]``."""
    first, second, in_first, in_second, t = taps
    S = dy.shape[-1]
    # One flat scatter of both taps: on CPU this is what Inductor compiles best, and eager's fastest too.
    zero = t.new_zeros(())
    index = torch.stack([first, second]).unsqueeze(-1) * S + torch.arange(S, device=dx.device)
    share = torch.stack([1 - t, t]).unsqueeze(-1) * dy
    # where, not a product: an infinite gradient outside must not become a NaN at the clamped row
    share = torch.where(torch.stack([in_first, in_second]).unsqueeze(-1), share, zero)
    return dx.flatten().scatter_add(0, index.flatten(), share.flatten()).view(dx.shape)


def _gather(x: Tensor, taps: tuple[Tensor, ...]) -> Tensor:
    a, slope = _read_both(x, taps)
    return (a + taps[-1].unsqueeze(-1) * slope).to(x.dtype)  # [B, H, W, G, S]


def axial_gather(x: Tensor, offset: Tensor, axis: str) -> Tensor:
    return _gather(x, _taps(x.dtype, *as_maps(offset, axis))).reshape(x.shape)


def axial_gather_backward(dy: Tensor, x: Tensor, offset: Tensor, axis: str) -> tuple[Tensor, Tensor]:
    """Gradients of x and offset; the slope in the offset is that of the segment it falls in."""
    taps = _taps(x.dtype, offset, axis)
    _, slope = _read_both(x, taps)
    dy = rearrange(dy, "b h w (g s) -> b h w g s", g=offset.shape[-1]).to(slope.dtype)
    dx = _scatter(torch.zeros(x.shape, dtype=dy.dtype, device=x.device), dy, taps)
    return dx.to(x.dtype), (dy * slope).sum(-1).to(offset.dtype)


# ---- branch_fusion


def branch_fusion_backward(dy: Tensor, branches: list[Tensor], logits: Tensor) -> tuple[list[Tensor], Tensor]:
    """Gradients of the branches and of the logits."""
    acc = accumulation_dtype(dy)
    dalpha = torch.stack([(dy.to(acc) * branch).flatten(1, -2).sum(1) for branch in branches], 1)
    alpha = logits.to(acc).softmax(1).view(*logits.shape[:2], *[1] * (dy.ndim - 2), logits.shape[2])
    return [(a * dy).to(dy.dtype) for a in alpha.unbind(1)], fusion_logits_backward(dalpha, logits)


def fusion_logits_backward(dalpha: Tensor, logits: Tensor) -> Tensor:
    """Gradient of the logits ``[B, K, C]`` from that of their softmax, which is accumulated in float32."""
    return softmax_backward(dalpha, logits.to(dalpha.dtype).softmax(1)).to(logits.dtype)


# ---- token_mix


# From here on tokens are [B, N, C], and never have four dimensions: Inductor takes those before a convolution for NCHW, and would store the
# channels of a token far apart.


def token_mix(x: Tensor, offset: Tensor, *parameters: Tensor | None) -> Tensor:
    """Mix in the order of the definition, for autograd; ``token_mix_forward`` computes the same in another order."""
    weights, axes, x = Weights(*parameters), x.shape[1:-1], x.flatten(1, -2)  # type: ignore[arg-type]
    gathered = [_gather(x, taps).reshape(x.shape) for taps in _taps_by_axis(x.dtype, offset)]
    parts = [F.linear(t, *fc) for t, fc in zip(gathered, zip(weights.fcs, weights.biases, strict=False), strict=True)]
    parts.append(F.linear(x, weights.weight_c))
    hidden = F.gelu(F.linear(reduce(add, parts).mean(1), weights.fc1_weight, weights.fc1_bias))
    logits = F.linear(hidden, weights.fc2_weight, weights.fc2_bias)
    alpha = rearrange(logits.to(accumulation_dtype(x)), "b (c k) -> k b 1 c", k=len(parts)).softmax(0)
    fused = reduce(add, (a * part for a, part in zip(alpha, parts, strict=True))).to(x.dtype)
    return F.linear(fused, weights.proj_weight, weights.proj_bias).unflatten(1, axes)


def _taps_by_axis(dtype: torch.dtype, offset: Tensor) -> list[tuple[Tensor, ...]]:
    return [_taps(dtype, *as_maps(part, axis)) for part, axis in offsets_by_axis(offset)]


def token_mix_forward(x: Tensor, offset: Tensor, weights: Weights, folded: bool) -> tuple[Tensor, Tensor]:
    """The mixed tokens, and what the backward needs besides the inputs: the means ``[B, K, C]``."""
    gathered = [_gather(x, taps).reshape(x.shape) for taps in _taps_by_axis(x.dtype, offset)] + [x]
    means = torch.stack([_mean(t) for t in gathered], 1)
    alpha = branch_weights(pooled(means, weights), weights)
    if folded:
        matrices, bias = fold(alpha, weights)
        y = torch.baddbmm(bias.to(x.dtype).unsqueeze(1), torch.cat(gathered, -1), rearrange(matrices, "k b o c -> b (k c) o"))
    else:
        fused = _fuse(branches(gathered, weights), alpha, weights).to(x.dtype)
        y = F.linear(fused, weights.proj_weight, weights.proj_bias)
    return y, means


def _mean(tokens: Tensor) -> Tensor:
    """Mean over the tokens, ``[B, C]``."""
    B, T, _ = tokens.shape
    count = max(T, 1)  # of no tokens zero, as NaN would reach the weights' gradients
    if tokens.dtype in (torch.float16, torch.bfloat16):
        return tokens.sum(1, dtype=torch.float32) / count
    # As a GEMM, of two equal rows lest Inductor see a sum in it: fused with the gather, that would walk through memory channel by
    # channel.
    return torch.bmm(tokens.new_full((B, 2, T), 0.5 / count), tokens).sum(1)


def branches(gathered: list[Tensor], weights: Weights) -> list[Tensor]:
    """Return the branches without their biases."""
    return [F.linear(t, weight) for t, weight in zip(gathered, weights.fcs, strict=True)]


def _fuse(parts: list[Tensor], alpha: Tensor, weights: Weights) -> Tensor:
    return reduce(add, (a * part for a, part in zip(alpha.unsqueeze(2).unbind(1), parts, strict=True))) + shift(alpha, weights).unsqueeze(1)


def token_mix_backward(
    dy: Tensor, x: Tensor, offset: Tensor, means: Tensor, weights: Weights, folded: bool
) -> tuple[Tensor, Tensor, Weights]:
    """Gradients of x, offset and the weights. The gathered tokens are gathered again, the fused ones computed again."""
    acc = accumulation_dtype(x)
    s = pooled(means, weights)
    alpha = branch_weights(s, weights)
    taps = _taps_by_axis(x.dtype, offset)
    reads = [_read_both(x, t) for t in taps]
    gathered = [(a + t[-1].unsqueeze(-1) * slope).to(x.dtype).reshape(x.shape) for (a, slope), t in zip(reads, taps, strict=True)] + [x]
    if folded:
        gradients, dgathered = folded_gradients(dy, gathered, alpha, weights)
    else:
        outputs = branches(gathered, weights)
        fused = _fuse(outputs, alpha, weights).to(x.dtype)
        dfused = dy @ weights.proj_weight
        dbranches = [(dfused * a).to(x.dtype) for a in alpha.unsqueeze(2).unbind(1)]
        dalpha = torch.stack([(dfused * branch).sum(1, dtype=acc) for branch in outputs], 1)
        gradients, dgathered = unfolded_gradients(dy, dbranches, fused, dalpha, dfused.sum(1, dtype=acc), gathered, alpha, weights)
    dmeans, dweights = branch_weights_backward(gradients, alpha, s, means, weights)
    dgathered = [d.to(acc) + dmean / max(x.shape[1], 1) for d, dmean in zip(dgathered, dmeans.unsqueeze(2).unbind(1), strict=True)]
    dx = dgathered[-1]
    doffset = []
    for d, t, (_, slope) in zip(dgathered, taps, reads, strict=False):
        d = d.view(slope.shape)
        doffset.append((d * slope).sum(-1).view(*offset.shape[:-1], slope.shape[3]))
        dx = _scatter(dx, d, t)
    return dx.to(x.dtype), torch.cat(doffset, -1).to(offset.dtype), dweights


def folded_gradients(dy: Tensor, gathered: list[Tensor], alpha: Tensor, weights: Weights) -> tuple[Gradients, list[Tensor]]:
    """Gradients of alpha and the weights, and of the gathered tokens, but for what those get through the means."""
    acc = alpha.dtype
    matrices, _ = fold(alpha, weights)
    dmatrices = torch.stack([torch.bmm(dy.mT, t) for t in gathered]).to(acc)
    gradients = fold_backward(dmatrices, dy.sum(1, dtype=acc), alpha, weights)
    return gradients, [torch.bmm(dy, matrix) for matrix in matrices]


def unfolded_gradients(
    dy: Tensor,
    dbranches: list[Tensor],
    fused: Tensor,
    dalpha: Tensor,
    dshift: Tensor,
    gathered: list[Tensor],
    alpha: Tensor,
    weights: Weights,
) -> tuple[Gradients, list[Tensor]]:
    """Gradients, likewise. ``fused``: the tokens before the projection; ``dalpha``, ``dshift``: as algebra.py takes them."""
    acc = alpha.dtype
    dweights = torch.stack([d.flatten(0, 1).mT @ t.flatten(0, 1) for d, t in zip(dbranches, gathered, strict=True)]).to(acc)
    dproj = (dy.flatten(0, 1).mT @ fused.flatten(0, 1)).to(acc)
    gradients = unfolded_backward(dweights, dalpha, dshift, dproj, dy.sum((0, 1), dtype=acc), alpha, weights)
    return gradients, [d @ weight for d, weight in zip(dbranches, weights.fcs, strict=True)]
