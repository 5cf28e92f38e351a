"""The part of token_mix that is as large as samples times channels: from the branches' means to the fusion's weights, and back.

The mean over the tokens commutes with the FCs, so the means of the gathered tokens alone decide the softmax weights ``alpha [B, 3, C]``
(order w, h, c). What PyTorch computes here is in float32 at least, and serves the kernels' path and the plain one alike.

Folding: with alpha known, a sample's three FCs, their weighting and the projection are one linear map of its gathered tokens,

    proj(sum over k of alpha_k * FC_k(g_k)) = sum over k of M_k g_k + bias,   M_k = proj @ diag(alpha_k) @ FC_k

which saves a product over all tokens, and costs three of [C, C] by [C, C] for each sample.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ._triton import jit, tl


class Weights(NamedTuple):
    """What ``token_mix`` takes after x and offset, in its order."""

    weight_w: Tensor  # [C, C]
    bias_w: Tensor  # [C]
    weight_h: Tensor  # [C, C]
    bias_h: Tensor  # [C]
    weight_c: Tensor  # [C, C]
    fc1_weight: Tensor  # [F, C]
    fc1_bias: Tensor  # [F]
    fc2_weight: Tensor  # [3 * C, F], rows in the order [C, 3]
    fc2_bias: Tensor  # [3 * C]
    proj_weight: Tensor  # [C, C]
    proj_bias: Tensor  # [C]

    def to(self, dtype: torch.dtype) -> Weights:
        return Weights(*(t.to(dtype) for t in self))

    def branches(self) -> Tensor:
        """The three FCs ``[3, C, C]``."""
        return torch.stack([self.weight_w, self.weight_h, self.weight_c])


def softmax_backward(dalpha: Tensor, alpha: Tensor) -> Tensor:
    """Gradient of the logits from that of their softmax over the branches, ``[B, 3, C]``."""
    return alpha * (dalpha - (alpha * dalpha).sum(1, keepdim=True))


def _pooled(means: Tensor, weights: Weights) -> Tensor:
    """The mean over the tokens of the three branches' sum, ``[B, C]``."""
    mean_w, mean_h, mean_c = means.unbind(1)
    s = F.linear(mean_w, weights.weight_w, weights.bias_w) + F.linear(mean_h, weights.weight_h, weights.bias_h)
    return s + F.linear(mean_c, weights.weight_c)


def branch_weights(means: Tensor, weights: Weights) -> Tensor:
    """alpha ``[B, 3, C]`` from the means ``[B, 3, C]`` of the gathered tokens."""
    weights = weights.to(means.dtype)
    hidden = F.gelu(F.linear(_pooled(means, weights), weights.fc1_weight, weights.fc1_bias))
    logits = F.linear(hidden, weights.fc2_weight, weights.fc2_bias)
    return rearrange(logits, "b (c k) -> b k c", k=3).softmax(1)


@jit
def _token_mix_pooled_kernel(
    means_ptr,  # [B, 3, C] float32
    weight_ptr,  # [3, C, C]
    bias_w_ptr,  # [C]
    bias_h_ptr,  # [C]
    pooled_ptr,  # [B, C] float32
    B,
    C: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The mean over the tokens of the three branches' sum, of BLOCK_B samples and BLOCK_C channels."""
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    s = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for start in range(0, 3 * C, BLOCK_C):  # the branches' channels in one row: only the last block of each branch's weights is cut
        k = start + tl.arange(0, BLOCK_C)
        mean = tl.load(means_ptr + b[:, None] * (3 * C) + k[None, :], mask=(b < B)[:, None] & (k < 3 * C)[None, :], other=0.0)
        at = ((k // C) * C)[:, None] * C + c[None, :] * C + (k % C)[:, None]
        weight = tl.load(weight_ptr + at, mask=(c < C)[None, :] & (k < 3 * C)[:, None], other=0.0)
        s = tl.dot(mean.to(weight.dtype), weight, s, input_precision="ieee")
    bias = tl.load(bias_w_ptr + c, mask=c < C, other=0.0).to(tl.float32) + tl.load(bias_h_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(pooled_ptr + b[:, None] * C + c[None, :], s + bias[None, :], mask=(b < B)[:, None] & (c < C)[None, :])


@jit
def _token_mix_alpha_kernel(
    pooled_ptr,  # [B, C] float32
    fc1_weight_ptr,  # [F, C]
    fc1_bias_ptr,  # [F]
    fc2_weight_ptr,  # [3 * C, F], rows in the order [C, 3]
    fc2_bias_ptr,  # [3 * C]
    alpha_ptr,  # [B, 3, C] float32
    steps_ptr,  # [B, 3, C] float32
    B,
    C: tl.constexpr,
    F: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """The bottleneck and the softmax, of BLOCK_B samples and BLOCK_C channels; every program makes all hidden values for itself.

    ``steps``: a sum weighted by alpha in one accumulator, ((acc_w * steps_w + acc_h) * steps_h + acc_c) * steps_c.
    """
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    f = tl.arange(0, BLOCK_F)
    hidden = tl.zeros((BLOCK_B, BLOCK_F), tl.float32)
    for start in range(0, C, BLOCK_C):
        k = start + tl.arange(0, BLOCK_C)
        s = tl.load(pooled_ptr + b[:, None] * C + k[None, :], mask=(b < B)[:, None] & (k < C)[None, :], other=0.0)
        weight = tl.load(fc1_weight_ptr + f[None, :] * C + k[:, None], mask=(f < F)[None, :] & (k < C)[:, None], other=0.0)
        hidden = tl.dot(s.to(weight.dtype), weight, hidden, input_precision="ieee")
    hidden += tl.load(fc1_bias_ptr + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
    hidden = 0.5 * hidden * (1.0 + tl.erf(hidden * 0.7071067811865476))
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (f < F)[:, None] & (c < C)[None, :]
    row = fc2_weight_ptr + (c * 3)[None, :] * F + f[:, None]
    weight = tl.load(row, mask=mask, other=0.0)
    w = tl.dot(hidden.to(weight.dtype), weight, input_precision="ieee")
    h = tl.dot(hidden.to(weight.dtype), tl.load(row + F, mask=mask, other=0.0), input_precision="ieee")
    i = tl.dot(hidden.to(weight.dtype), tl.load(row + 2 * F, mask=mask, other=0.0), input_precision="ieee")
    w += tl.load(fc2_bias_ptr + c * 3, mask=c < C, other=0.0).to(tl.float32)[None, :]
    h += tl.load(fc2_bias_ptr + c * 3 + 1, mask=c < C, other=0.0).to(tl.float32)[None, :]
    i += tl.load(fc2_bias_ptr + c * 3 + 2, mask=c < C, other=0.0).to(tl.float32)[None, :]
    top = tl.maximum(tl.maximum(w, h), i)
    w, h, i = tl.exp(w - top), tl.exp(h - top), tl.exp(i - top)
    total = w + h + i
    w, h, i = w / total, h / total, i / total
    at = b[:, None] * (3 * C) + c[None, :]
    mask = (b < B)[:, None] & (c < C)[None, :]
    tl.store(alpha_ptr + at, w, mask=mask)
    tl.store(alpha_ptr + at + C, h, mask=mask)
    tl.store(alpha_ptr + at + 2 * C, i, mask=mask)
    # A weight below any rounding is as good as one that is smaller, and keeps the quotients finite. A NaN stays one.
    w = tl.where(w < 1e-18, 1e-18, w)
    h = tl.where(h < 1e-18, 1e-18, h)
    i = tl.where(i < 1e-18, 1e-18, i)
    tl.store(steps_ptr + at, w / h, mask=mask)
    tl.store(steps_ptr + at + C, h / i, mask=mask)
    tl.store(steps_ptr + at + 2 * C, i, mask=mask)


def shift(alpha: Tensor, weights: Weights) -> Tensor:
    """What the FCs' biases add to every token of a sample, ``[B, C]``."""
    return alpha[:, 0] * weights.bias_w + alpha[:, 1] * weights.bias_h


def fold(alpha: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The matrices ``[3, B, C, C]`` in the weights' dtype, and the bias ``[B, C]``."""
    dtype = weights.proj_weight.dtype
    scaled = torch.einsum("oc,bkc->kboc", weights.proj_weight.to(alpha.dtype), alpha).to(dtype)
    matrices = torch.bmm(rearrange(scaled, "k b o c -> k (b o) c"), weights.branches())
    bias = F.linear(shift(alpha, weights), weights.proj_weight.to(alpha.dtype), weights.proj_bias.to(alpha.dtype))
    return rearrange(matrices, "k (b o) c -> k b o c", o=alpha.shape[2]), bias


class Gradients(NamedTuple):
    """Of alpha, and of the weights of the three FCs and the projection, as the fused products give them."""

    alpha: Tensor  # [B, 3, C]
    branches: Tensor  # [3, C, C]
    bias_w: Tensor
    bias_h: Tensor
    proj_weight: Tensor
    proj_bias: Tensor


def fold_backward(dmatrices: Tensor, dbias: Tensor, alpha: Tensor, weights: Weights) -> Gradients:
    """From the gradients of ``fold``'s results, ``[3, B, C, C]`` and ``[B, C]``."""
    weights = weights.to(alpha.dtype)
    scaled = torch.einsum("oc,bkc->kboc", weights.proj_weight, alpha)
    dbranches = (scaled.mT @ dmatrices).sum(1)  # each sample's own: one product over all samples would be too long a sum for a GPU
    dmatrices = rearrange(dmatrices, "k b o c -> k (b o) c")
    dscaled = rearrange(torch.bmm(dmatrices, weights.branches().mT), "k (b o) c -> k b o c", o=alpha.shape[2])
    dproj = torch.einsum("kboc,bkc->oc", dscaled, alpha)
    dalpha = torch.einsum("kboc,oc->bkc", dscaled, weights.proj_weight)
    dalpha, dbias_w, dbias_h = _shift_backward(dbias @ weights.proj_weight, dalpha, alpha, weights)
    return Gradients(dalpha, dbranches, dbias_w, dbias_h, dproj + dbias.mT @ shift(alpha, weights), dbias.sum(0))


def unfolded_backward(
    dbranches: Tensor, dalpha: Tensor, dshift: Tensor, dproj: Tensor, dproj_bias: Tensor, alpha: Tensor, weights: Weights
) -> Gradients:
    """``dalpha``: without what the biases add to it; ``dshift [B, C]``: the sum over a sample's tokens of the fused branches' gradient."""
    dalpha, dbias_w, dbias_h = _shift_backward(dshift, dalpha, alpha, weights.to(alpha.dtype))
    return Gradients(dalpha, dbranches, dbias_w, dbias_h, dproj, dproj_bias)


def _shift_backward(dshift: Tensor, dalpha: Tensor, alpha: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    zero = torch.zeros_like(dshift)
    dalpha = dalpha + torch.stack([dshift * weights.bias_w, dshift * weights.bias_h, zero], 1)
    return dalpha, (dshift * alpha[:, 0]).sum(0), (dshift * alpha[:, 1]).sum(0)


def branch_weights_backward(gradients: Gradients, alpha: Tensor, means: Tensor, weights: Weights) -> tuple[Tensor, Weights]:
    """The gradient of the means ``[B, 3, C]``, and the complete gradients of all weights."""
    weights = weights.to(means.dtype)
    s = _pooled(means, weights)
    z = F.linear(s, weights.fc1_weight, weights.fc1_bias)
    hidden = F.gelu(z)
    dlogits = rearrange(softmax_backward(gradients.alpha, alpha), "b k c -> b (c k)")
    dz = torch.ops.aten.gelu_backward(dlogits @ weights.fc2_weight, z)
    ds = dz @ weights.fc1_weight
    branches = weights.branches()
    dmeans = torch.einsum("bo,koc->bkc", ds, branches)
    dbranches = [d + ds.mT @ mean for d, mean in zip(gradients.branches, means.unbind(1), strict=True)]
    dweights = Weights(
        dbranches[0],
        gradients.bias_w + ds.sum(0),
        dbranches[1],
        gradients.bias_h + ds.sum(0),
        dbranches[2],
        dz.mT @ s,
        dz.sum(0),
        dlogits.mT @ hidden,
        dlogits.sum(0),
        gradients.proj_weight,
        gradients.proj_bias,
    )
    return dmeans, dweights
