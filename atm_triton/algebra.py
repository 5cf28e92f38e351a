"""The part of token_mix that is as large as samples times channels: from the branches' means to the fusion's weights, and back.

K branches are the tokens gathered along each axis, in the order w, h, t, and the tokens themselves, c. The mean over the tokens commutes
with the FCs, so the means of the gathered tokens alone decide the softmax weights ``alpha [B, K, C]``. What PyTorch computes here is in
float32 at least, and serves the kernels' path and the plain one alike.

Folding: with alpha known, a sample's FCs, their weighting and the projection are one linear map of its gathered tokens,

    proj(sum over k of alpha_k * FC_k(g_k)) = sum over k of M_k g_k + bias,   M_k = proj @ diag(alpha_k) @ FC_k

which saves a GEMM over all tokens, and costs K of [C, C] by [C, C] for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


class Weights(NamedTuple):
    """Arguments of ``token_mix`` after x and offset, in its order: with those of h of two axes or three, with those of t of three."""

    weight_w: Tensor  # [O, C]: outputs, channels of x
    bias_w: Tensor  # [O]
    weight_h: Tensor | None  # [O, C]
    bias_h: Tensor | None  # [O]
    weight_c: Tensor  # [O, C]
    fc1_weight: Tensor  # [F, O]
    fc1_bias: Tensor  # [F]
    fc2_weight: Tensor  # [K * O, F], rows in the order [O, K]
    fc2_bias: Tensor  # [K * O]
    proj_weight: Tensor  # [O, O]
    proj_bias: Tensor  # [O]
    weight_t: Tensor | None = None  # [O, C]
    bias_t: Tensor | None = None  # [O]

    @classmethod
    def of(cls, fcs: Sequence[Tensor], biases: Sequence[Tensor], *others: Tensor) -> Weights:
        """Weights of the branches' FCs, their biases, and of the bottleneck and the projection."""
        *along, own = fcs
        w, h, t = [*zip(along, biases, strict=True), (None, None), (None, None)][:3]
        return cls(*w, *h, own, *others, *t)  # type: ignore[arg-type, call-arg]

    @property
    def fcs(self) -> list[Tensor]:
        """The branches' FCs."""
        return [t for t in (self.weight_w, self.weight_h, self.weight_t, self.weight_c) if t is not None]

    @property
    def biases(self) -> list[Tensor]:
        """Of all branches but the last, which has none."""
        return [t for t in (self.bias_w, self.bias_h, self.bias_t) if t is not None]

    def map(self, function: Callable[[Tensor], Tensor]) -> Weights:
        return Weights(*(None if t is None else function(t) for t in self))  # type: ignore[arg-type]

    def to(self, dtype: torch.dtype) -> Weights:
        return self.map(lambda t: t.to(dtype))

    def branches(self) -> Tensor:
        """The branches' FCs ``[K, O, C]``."""
        return torch.stack(self.fcs)

    def side_by_side(self, dtype: torch.dtype) -> Tensor:
        """The branches' FCs ``[O, K * C]``, for GEMMs of all at once."""
        return torch.cat(self.fcs, 1).to(dtype)


def softmax_backward(dalpha: Tensor, alpha: Tensor) -> Tensor:
    """Gradient of the logits from that of their softmax over the branches, ``[B, K, C]``."""
    return alpha * (dalpha - (alpha * dalpha).sum(1, keepdim=True))


def pooled(means: Tensor, weights: Weights) -> Tensor:
    """The mean over the tokens of the branches' sum, ``[B, O]``, from the means ``[B, K, C]`` of what they take in."""
    first, *others = weights.biases
    return F.linear(means.flatten(1), weights.side_by_side(means.dtype), sum(others, first.to(means.dtype)))


def branch_weights(s: Tensor, weights: Weights) -> Tensor:
    """alpha ``[B, K, O]`` from ``pooled``."""
    weights = weights.to(s.dtype)
    hidden = F.gelu(F.linear(s, weights.fc1_weight, weights.fc1_bias))
    logits = F.linear(hidden, weights.fc2_weight, weights.fc2_bias)
    return rearrange(logits, "b (c k) -> b k c", k=len(weights.fcs)).softmax(1)


def shift(alpha: Tensor, weights: Weights) -> Tensor:
    """Share of the FCs' biases in every token of a sample, ``[B, O]``."""
    return reduce(add, (a * bias for a, bias in zip(alpha.unbind(1), weights.biases, strict=False)))


def fold(alpha: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The matrices ``[K, B, O, C]`` in the weights' dtype, and the bias ``[B, O]``."""
    dtype = weights.proj_weight.dtype
    scaled = torch.einsum("oc,bkc->kboc", weights.proj_weight.to(alpha.dtype), alpha).to(dtype)
    matrices = torch.bmm(rearrange(scaled, "k b o c -> k (b o) c"), weights.branches())
    bias = F.linear(shift(alpha, weights), weights.proj_weight.to(alpha.dtype), weights.proj_bias.to(alpha.dtype))
    return rearrange(matrices, "k (b o) c -> k b o c", o=alpha.shape[2]), bias


class Gradients(NamedTuple):
    """Gradients of alpha, and of the weights of the FCs and the projection, as the fused GEMMs give them."""

    alpha: Tensor  # [B, K, O]
    branches: Tensor  # [K, O, C]
    biases: list[Tensor]
    proj_weight: Tensor
    proj_bias: Tensor


def fold_backward(dmatrices: Tensor, dbias: Tensor, alpha: Tensor, weights: Weights) -> Gradients:
    """Gradients of ``fold``'s arguments from those of its results, ``[K, B, O, C]`` and ``[B, O]``."""
    weights = weights.to(alpha.dtype)
    scaled = torch.einsum("oc,bkc->kboc", weights.proj_weight, alpha)
    dbranches = (scaled.mT @ dmatrices).sum(1)  # each sample's own: one GEMM over all samples would be too long a sum for a GPU
    dmatrices = rearrange(dmatrices, "k b o c -> k (b o) c")
    dscaled = rearrange(torch.bmm(dmatrices, weights.branches().mT), "k (b o) c -> k b o c", o=alpha.shape[2])
    dproj = torch.einsum("kboc,bkc->oc", dscaled, alpha)
    dalpha = torch.einsum("kboc,oc->bkc", dscaled, weights.proj_weight)
    dalpha, dbiases = _shift_backward(dbias @ weights.proj_weight, dalpha, alpha, weights)
    return Gradients(dalpha, dbranches, dbiases, dproj + dbias.mT @ shift(alpha, weights), dbias.sum(0))


def unfolded_backward(
    dbranches: Tensor, dalpha: Tensor, dshift: Tensor, dproj: Tensor, dproj_bias: Tensor, alpha: Tensor, weights: Weights
) -> Gradients:
    """``dalpha``: without what the biases add to it; ``dshift [B, O]``: the sum over a sample's tokens of the fused branches' gradient."""
    dalpha, dbiases = _shift_backward(dshift, dalpha, alpha, weights.to(alpha.dtype))
    return Gradients(dalpha, dbranches, dbiases, dproj, dproj_bias)


def _shift_backward(dshift: Tensor, dalpha: Tensor, alpha: Tensor, weights: Weights) -> tuple[Tensor, list[Tensor]]:
    dalpha = dalpha + torch.stack([*(dshift * bias for bias in weights.biases), torch.zeros_like(dshift)], 1)
    return dalpha, [(dshift * a).sum(0) for a in alpha.unbind(1)[:-1]]


def branch_weights_backward(gradients: Gradients, alpha: Tensor, s: Tensor, means: Tensor, weights: Weights) -> tuple[Tensor, Weights]:
    """The gradient of the means ``[B, K, C]``, and the complete gradients of all weights. ``s``: ``pooled``."""
    branches, weights, k = weights.side_by_side(means.dtype), weights.to(means.dtype), len(weights.fcs)
    z = F.linear(s, weights.fc1_weight, weights.fc1_bias)
    hidden = F.gelu(z)
    dlogits = rearrange(softmax_backward(gradients.alpha, alpha), "b k c -> b (c k)")
    dz = torch.ops.aten.gelu_backward(dlogits @ weights.fc2_weight, z)
    ds = dz @ weights.fc1_weight
    dmeans = rearrange(ds @ branches, "b (k c) -> b k c", k=k)
    through_means = rearrange(ds.mT @ means.flatten(1), "o (k c) -> k o c", k=k)
    dbranches = [a + b for a, b in zip(gradients.branches, through_means, strict=True)]  # apart, as an operator returns them
    dweights = Weights.of(
        dbranches,
        [dbias + ds.sum(0) for dbias in gradients.biases],
        dz.mT @ s,
        dz.sum(0),
        dlogits.mT @ hidden,
        dlogits.sum(0),
        gradients.proj_weight,
        gradients.proj_bias,
    )
    return dmeans, dweights
