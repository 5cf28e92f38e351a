"""The least that an operator must do: the bytes that must move, and the operations, and how long that takes on a device at best.

Bytes: a layer reads each of its inputs and weights once and writes each of its outputs once; backward it reads its inputs, its weights and
the gradient of its output, and writes the gradients of its inputs and weights. Operations: of GEMMs and convolutions (inside token_mix the
few of gathering and weighing are left out), twice as many backward. The limit of a layer is the larger of bytes over the measured copy
bandwidth and operations over the measured rate of a large GEMM.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from atm_triton import flops
from atm_triton.reference import bottleneck
from atm_triton.testing import Operator, Shape


class Ceilings(NamedTuple):
    """Best rates that a device was measured at."""

    bandwidth: float  # bytes/s of a large copy, read and written
    rate: float  # operations/s of a large GEMM


class Work(NamedTuple):
    bytes: int
    flops: int

    def seconds(self, ceilings: Ceilings) -> float:
        return max(self.bytes / ceilings.bandwidth, self.flops / ceilings.rate)


class Layer(NamedTuple):
    """Sizes in elements."""

    name: str
    inputs: int
    outputs: int
    weights: int
    flops: int  # forward
    residual: int = 0  # read forward, and its gradient backward
    data: bool = False  # the input is images, which need no gradient

    def forward(self, itemsize: int) -> Work:
        return Work((self.inputs + self.residual + self.outputs + self.weights) * itemsize, self.flops)

    def backward(self, itemsize: int) -> Work:
        inputs, flops = (self.inputs, self.flops) if self.data else (2 * self.inputs, 2 * self.flops)
        return Work((inputs + self.residual + self.outputs + 2 * self.weights) * itemsize, flops)


class Tokens(NamedTuple):
    """``x [B, H, W, C]`` with G offsets per axis."""

    B: int
    H: int
    W: int
    C: int
    G: int

    @classmethod
    def read(cls, text: str) -> Tokens:
        """Read the results' ``BxHxWxC/GG``."""
        return cls(*map(int, re.split("x|/G", text)))

    @property
    def shape(self) -> Shape:
        return Shape(self.B, self.H, self.W, self.G, self.C // self.G)

    @property
    def size(self) -> int:
        return self.B * self.H * self.W * self.C

    @property
    def offsets(self) -> int:
        """Count of offsets, of both axes."""
        return 2 * self.B * self.H * self.W * self.G

    def __str__(self) -> str:
        return f"{self.B}x{self.H}x{self.W}x{self.C}/G{self.G}"


# ---- operators


def offset_fc(t: Tokens) -> Layer:
    weights = 2 * t.G * (t.C + 1) + 2 * t.C
    return Layer("offset_fc", t.size, t.offsets, weights, 2 * flops.offset_fc_macs(t.shape.tokens, 2 * t.G))


def operator(row: Operator, t: Tokens) -> Layer:
    """Work of the table's row: the GEMMs of its definition, and what it says; its weights are the inputs of two dimensions or fewer."""
    sizes = [*row.inputs(t.shape).values()]
    inputs, weights = (sum(math.prod(size) for size in sizes if (len(size) > 2) == many) for many in (True, False))
    with FlopCounterMode(display=False) as counter:
        y = row.definition(*(torch.empty(size, device="meta") for size in sizes))
    return Layer(row.op, inputs, y.numel(), weights, counter.get_total_flops() + row.elementwise[0] * t.size)


def token_mix(t: Tokens) -> Layer:
    """Folding (atm_triton/algebra.py) saves one of four GEMMs over the tokens, for three of [C, C] by [C, C] a sample."""
    hidden, saved = bottleneck(t.C), t.B * max(0, t.H * t.W - 3 * t.C) * t.C**2
    weights = 4 * t.C**2 + 3 * t.C + hidden * (t.C + 1) + 3 * t.C * (hidden + 1)
    return Layer("token_mix", t.size + t.offsets, t.size, weights, 2 * (flops.token_mix_macs(t.shape.tokens, t.C, axes=2) - saved))


# ---- of several layers


def works(layers: list[Layer], itemsize: int, backward: bool) -> list[Work]:
    """Work of each layer, forward, or forward and backward."""
    return [work for layer in layers for work in (layer.forward(itemsize), layer.backward(itemsize))[: 1 + backward]]


def total(layers: list[Layer], itemsize: int, backward: bool) -> Work:
    found = works(layers, itemsize, backward)
    return Work(sum(work.bytes for work in found), sum(work.flops for work in found))


def limit(layers: list[Layer], itemsize: int, backward: bool, ceilings: Ceilings) -> float:
    """Seconds, each layer and each direction at its own limit."""
    return sum(work.seconds(ceilings) for work in works(layers, itemsize, backward))
