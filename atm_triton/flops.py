"""Costs of the operators, said once: for PyTorch's FLOP counter, the costs of models and the benchmark's limits.

A MAC is a multiplication and an addition of a GEMM, a convolution or an attention. FLOPs are two a MAC, and besides what is computed per
value: gathering, fusing. What a kernel computes again is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .reference import bottleneck

# FLOPs per value of the tokens, forward and backward, that are in no GEMM.
GATHER = 4, 8  # two multiplications and two additions; the backward's gather again, and twice over for two gradients


def fusion(branches: int) -> tuple[int, int]:
    """FLOPs per value, likewise: a multiplication each and the additions; three times a multiplication or an addition each."""
    return 2 * branches - 1, 3 * branches


def mix(axes: int) -> tuple[int, int]:
    """FLOPs per value of gathering along the axes and fusing; backward twice as many."""
    forward = axes * GATHER[0] + fusion(axes + 1)[0]
    return forward, 2 * forward


def none(*_: Sequence[int], **__: object) -> int:
    return 0


@dataclass(frozen=True)
class Formula:
    """Cost of an operator by the shapes of its arguments; called, the FLOPs, as PyTorch's FLOP counter asks for them."""

    macs: Callable[..., int] = none
    per_value: Callable[..., int] = none  # FLOPs that are in no GEMM
    normalized: Callable[..., int] = none  # values that a LayerNorm inside normalizes

    def __call__(self, *shapes: Sequence[int], **others: object) -> int:
        return 2 * self.macs(*shapes, **others) + self.per_value(*shapes, **others)


def offset_fc_macs(x: Sequence[int], outputs: int) -> int:
    """MACs of tokens ``[B, *axes, C]`` to ``outputs`` offset channels. The LayerNorm has none."""
    return math.prod(x) * outputs


def token_mix_macs(x: Sequence[int], outputs: int, axes: int) -> int:
    """MACs of tokens ``[B, ..., C]``: the FCs of the branches and the projection over the tokens, and a sample's bottleneck."""
    B, *_, C = x
    tokens, branches = math.prod(x) // C, axes + 1
    return tokens * outputs * (branches * C + outputs) + (branches + 1) * B * outputs * bottleneck(outputs)


def token_mix_per_value(x: Sequence[int], outputs: int, axes: int) -> int:
    """FLOPs of gathering and fusing, forward."""
    return axes * GATHER[0] * math.prod(x) + fusion(axes + 1)[0] * math.prod(x) // x[-1] * outputs
