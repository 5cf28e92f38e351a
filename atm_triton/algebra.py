"""The part of token_mix that is as large as samples times channels: from the branches' means to the fusion's weights, and back.

The mean over the tokens commutes with the FCs, so the means of the gathered tokens alone decide the softmax weights ``alpha [B, 3, C]``
(order w, h, c). What PyTorch computes here is in float32 at least, and serves the kernels' path and the plain one alike.

Folding: with alpha known, a sample's three FCs, their weighting and the projection are one linear map of its gathered tokens,

    proj(sum over k of alpha_k * FC_k(g_k)) = sum over k of M_k g_k + bias,   M_k = proj @ diag(alpha_k) @ FC_k

which saves a GEMM over all tokens, and costs three of [C, C] by [C, C] for each sample.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


class Weights(NamedTuple):
    """Arguments of ``token_mix`` after x and offset, in its order."""

    weight_w: Tensor  # [O, C]: outputs, channels of x
    bias_w: Tensor  # [O]
    weight_h: Tensor  # [O, C]
    bias_h: Tensor  # [O]
    weight_c: Tensor  # [O, C]
    fc1_weight: Tensor  # [F, O]
    fc1_bias: Tensor  # [F]
    fc2_weight: Tensor  # [3 * O, F], rows in the order [O, 3]
    fc2_bias: Tensor  # [3 * O]
    proj_weight: Tensor  # [O, O]
    proj_bias: Tensor  # [O]

    def to(self, dtype: torch.dtype) -> Weights:
        return Weights(*(t.to(dtype) for t in self))

    def branches(self) -> Tensor:
        """The three FCs ``[3, O, C]``."""
        return torch.stack([self.weight_w, self.weight_h, self.weight_c])

    def side_by_side(self, dtype: torch.dtype) -> Tensor:
        """The three FCs ``[O, 3 * C]``, for GEMMs of all three at once."""
        return torch.cat([self.weight_w, self.weight_h, self.weight_c], 1).to(dtype)


def softmax_backward(dalpha: Tensor, alpha: Tensor) -> Tensor:
    """Gradient of the logits from that of their softmax over the branches, ``[B, 3, C]``."""
    return alpha * (dalpha - (alpha * dalpha).sum(1, keepdim=True))


def pooled(means: Tensor, weights: Weights) -> Tensor:
    """The mean over the tokens of the three branches' sum, ``[B, O]``, from the means ``[B, 3, C]`` of what they take in."""
    bias = weights.bias_w.to(means.dtype) + weights.bias_h
    return F.linear(means.flatten(1), weights.side_by_side(means.dtype), bias)


def branch_weights(s: Tensor, weights: Weights) -> Tensor:
    """alpha ``[B, 3, O]`` from ``pooled``."""
    weights = weights.to(s.dtype)
    hidden = F.gelu(F.linear(s, weights.fc1_weight, weights.fc1_bias))
    logits = F.linear(hidden, weights.fc2_weight, weights.fc2_bias)
    return rearrange(logits, "b (c k) -> b k c", k=3).softmax(1)


def shift(alpha: Tensor, weights: Weights) -> Tensor:
    """Share of the FCs' biases in every token of a sample, ``[B, O]``."""
    return alpha[:, 0] * weights.bias_w + alpha[:, 1] * weights.bias_h


def fold(alpha: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The matrices ``[3, B, O, C]`` in the weights' dtype, and the bias ``[B, O]``."""
    dtype = weights.proj_weight.dtype
    scaled = torch.einsum("oc,bkc->kboc", weights.proj_weight.to(alpha.dtype), alpha).to(dtype)
    matrices = torch.bmm(rearrange(scaled, "k b o c -> k (b o) c"), weights.branches())
    bias = F.linear(shift(alpha, weights), weights.proj_weight.to(alpha.dtype), weights.proj_bias.to(alpha.dtype))
    return rearrange(matrices, "k (b o) c -> k b o c", o=alpha.shape[2]), bias


class Gradients(NamedTuple):
    """Gradients of alpha, and of the weights of the three FCs and the projection, as the fused GEMMs give them."""

    alpha: Tensor  # [B, 3, O]
    branches: Tensor  # [3, O, C]
    bias_w: Tensor
    bias_h: Tensor
    proj_weight: Tensor
    proj_bias: Tensor


def fold_backward(dmatrices: Tensor, dbias: Tensor, alpha: Tensor, weights: Weights) -> Gradients:
    """Gradients of ``fold``'s arguments from those of its results, ``[3, B, O, C]`` and ``[B, O]``."""
    weights = weights.to(alpha.dtype)
    scaled = torch.einsum("oc,bkc->kboc", weights.proj_weight, alpha)
    dbranches = (scaled.mT @ dmatrices).sum(1)  # each sample's own: one GEMM over all samples would be too long a sum for a GPU
    dmatrices = rearrange(dmatrices, "k b o c -> k (b o) c")
    dscaled = rearrange(torch.bmm(dmatrices, weights.branches().mT), "k (b o) c -> k b o c", o=alpha.shape[2])
    dproj = torch.einsum("kboc,bkc->oc", dscaled, alpha)
    dalpha = torch.einsum("kboc,oc->bkc", dscaled, weights.proj_weight)
    dalpha, dbias_w, dbias_h = _shift_backward(dbias @ weights.proj_weight, dalpha, alpha, weights)
    return Gradients(dalpha, dbranches, dbias_w, dbias_h, dproj + dbias.mT @ shift(alpha, weights), dbias.sum(0))


def unfolded_backward(
    dbranches: Tensor, dalpha: Tensor, dshift: Tensor, dproj: Tensor, dproj_bias: Tensor, alpha: Tensor, weights: Weights
) -> Gradients:
    """``dalpha``: without what the biases add to it; ``dshift [B, O]``: the sum over a sample's tokens of the fused branches' gradient."""
    dalpha, dbias_w, dbias_h = _shift_backward(dshift, dalpha, alpha, weights.to(alpha.dtype))
    return Gradients(dalpha, dbranches, dbias_w, dbias_h, dproj, dproj_bias)


def _shift_backward(dshift: Tensor, dalpha: Tensor, alpha: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    zero = torch.zeros_like(dshift)
    dalpha = dalpha + torch.stack([dshift * weights.bias_w, dshift * weights.bias_h, zero], 1)
    return dalpha, (dshift * alpha[:, 0]).sum(0), (dshift * alpha[:, 1]).sum(0)


def branch_weights_backward(gradients: Gradients, alpha: Tensor, s: Tensor, means: Tensor, weights: Weights) -> tuple[Tensor, Weights]:
    """The gradient of the means ``[B, 3, C]``, and the complete gradients of all weights. ``s``: ``pooled``."""
    branches, weights = weights.side_by_side(means.dtype), weights.to(means.dtype)
    z = F.linear(s, weights.fc1_weight, weights.fc1_bias)
    hidden = F.gelu(z)
    dlogits = rearrange(softmax_backward(gradients.alpha, alpha), "b k c -> b (c k)")
    dz = torch.ops.aten.gelu_backward(dlogits @ weights.fc2_weight, z)
    ds = dz @ weights.fc1_weight
    dmeans = rearrange(ds @ branches, "b (k c) -> b k c", k=3)
    through_means = rearrange(ds.mT @ means.flatten(1), "o (k c) -> k o c", k=3)
    dbranches = [a + b for a, b in zip(gradients.branches, through_means, strict=True)]  # apart, as an operator returns them
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
