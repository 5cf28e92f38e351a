"""The least that an operator must do: the bytes that must move, and the operations, and how long that takes on a device at best.

Bytes: a layer reads each of its inputs and weights once and writes each of its outputs once; backward it reads its inputs, its weights and
the gradient of its output, and writes the gradients of its inputs and weights. Operations: of GEMMs and convolutions (inside token_mix the
few of gathering and weighing are left out), twice as many backward. The limit of a layer is the larger of bytes over the measured copy
bandwidth and operations over the measured rate of a large GEMM.
"""

from __future__ import annotations

from typing import NamedTuple


class Ceilings(NamedTuple):
    """What a device was measured to do at best."""

    bandwidth: float  # bytes/s of a large copy, read and written
    rate: float  # operations/s of a large matrix product


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

    @property
    def size(self) -> int:
        return self.B * self.H * self.W * self.C

    @property
    def offsets(self) -> int:
        """Of both axes."""
        return 2 * self.B * self.H * self.W * self.G

    def __str__(self) -> str:
        return f"{self.B}x{self.H}x{self.W}x{self.C}/G{self.G}"


# ---- operators


def offset_fc(t: Tokens) -> Layer:
    weights = 2 * t.G * (t.C + 1) + 2 * t.C
    return Layer("offset_fc", t.size, t.offsets, weights, 2 * t.size * 2 * t.G)


def axial_gather(t: Tokens) -> Layer:
    return Layer("axial_gather", t.size + t.offsets // 2, t.size, 0, 4 * t.size)


def branch_fusion(t: Tokens) -> Layer:
    return Layer("branch_fusion", 3 * t.size + 3 * t.B * t.C, t.size, 0, 5 * t.size)


def token_mix(t: Tokens) -> Layer:
    """Four products of [C, C] over all tokens; or three, if the projection is folded into them for each sample (atm_triton/mixing.py)."""
    hidden = max(1, t.C // 4)
    products = min(4 * t.H * t.W, 3 * t.H * t.W + 3 * t.C) * t.C**2
    weights = 4 * t.C**2 + 3 * t.C + hidden * (t.C + 1) + 3 * t.C * (hidden + 1)
    return Layer("token_mix", t.size + t.offsets, t.size, weights, 2 * t.B * (products + 4 * t.C * hidden))


# ---- of several layers


def works(layers: list[Layer], itemsize: int, backward: bool) -> list[Work]:
    """Of each layer, forward, or forward and backward."""
    return [work for layer in layers for work in (layer.forward(itemsize), layer.backward(itemsize))[: 1 + backward]]


def total(layers: list[Layer], itemsize: int, backward: bool) -> Work:
    found = works(layers, itemsize, backward)
    return Work(sum(work.bytes for work in found), sum(work.flops for work in found))


def limit(layers: list[Layer], itemsize: int, backward: bool, ceilings: Ceilings) -> float:
    """Seconds, each layer and each direction at its own limit."""
    return sum(work.seconds(ceilings) for work in works(layers, itemsize, backward))
