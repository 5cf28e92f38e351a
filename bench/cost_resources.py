"""Time that an H200 needs for the parts of a kernel, in microseconds: the constants of the cost model, each with its origin.

A kernel's time is the 3-norm of what its resources would need alone, as they overlap, but not perfectly; and a launch.
"""

from __future__ import annotations

import functools
import math
import random

from work import Ceilings, Tokens


class Constant(float):
    """A number and where it comes from: measured, derived (fitted on one or two kernels, tested on the others; or counted), or assumed."""

    unit: str
    origin: str
    source: str

    def __new__(cls, value: float, unit: str, origin: str, source: str) -> Constant:
        constant = super().__new__(cls, value)
        constant.unit, constant.origin, constant.source = unit, origin, source
        return constant


def measured(value: float, unit: str, source: str) -> Constant:
    return Constant(value, unit, "measured", source)


def derived(value: float, unit: str, source: str) -> Constant:
    return Constant(value, unit, "derived", source)


def assumed(value: float, unit: str, source: str) -> Constant:
    return Constant(value, unit, "assumed", source)


RESULTS = "bench/results/nvidia-h200-2026-11-26.csv"
SMS = measured(132, "multiprocessors", "as PyTorch reports")
BANDWIDTH = measured(4267e3, "bytes/µs", f"copy of 1 GiB, {RESULTS}")
GEMM_RATE = measured(724e6, "FLOP/µs", f"bfloat16, 8192 × 8192 × 8192, {RESULTS}")
SMALL_KERNEL = measured(2.4, "µs", "a small kernel of PyTorch: 25 of them take 50 to 60 µs of a backward")
LINE = derived(1, "cycles", "mean at stage 1: a load takes one for each distinct 128-byte line of a warp's request, in the L1")
ATOMIC_RATE = derived(82e3, "sectors/µs", "dx at stage 1: red.global in the L2, of the whole GPU")
SECTION = derived(1.75, "µs", "dw at stages 3 and 4: offset, gather, shared memory, GEMM, one after the other in a program")
PROLOGUE = derived(2.5, "µs", "mean at stage 4: until a program's first section")
CLOCK = assumed(1755, "cycles/µs", "under load; it boosts to 1980")
LAUNCH = assumed(2.0, "µs", "a kernel's fill and drain inside of a CUDA graph")
L2_BANDWIDTH = assumed(5.5e6, "bytes/µs", "read and written; a little more than memory gives")
L2_KEEPS = assumed(30e6, "bytes", "what the next kernel still finds there")
BANDWIDTH_SHARE = assumed(0.85, "of BANDWIDTH", "reached by kernels that are not copies")
GEMM_SHARE = assumed(0.65, "of GEMM_RATE", "reached by GEMMs of 64 to 512 channels")
ISSUE_SHARE = assumed(0.75, "of the issue slots", "reached by kernels that are not bound by latency")
OFFSET_SPREAD = measured(3, "positions", "the benchmark's offsets, their standard deviation")

WARP, SCHEDULERS, SECTOR = 32, 4, 32  # threads; a multiprocessor's; bytes
CEILINGS = Ceilings(1e6 * BANDWIDTH, 1e6 * GEMM_RATE)


def together(*microseconds: float) -> float:
    return float(LAUNCH) + sum(time**3 for time in microseconds) ** (1 / 3)


def gemm_flops(t: Tokens) -> int:
    """FLOPs of one [C, C] GEMM over all tokens."""
    return 2 * t.size * t.C


def x_bytes(t: Tokens) -> int:
    """Bytes of x in bfloat16."""
    return 2 * t.size


def offset_bytes(t: Tokens) -> int:
    return 2 * t.offsets


@functools.cache
def distinct(lanes: int, length: int) -> float:
    """Distinct tokens of a line of ``length`` that as many lanes read, each with an offset of its own; tokens outside are not read."""
    rng, draws, total = random.Random(0), 1500, 0
    for _ in range(draws):
        position = rng.randrange(length)
        read = {position + math.floor(OFFSET_SPREAD * rng.gauss(0, 1)) for _ in range(lanes)}
        total += sum(0 <= token < length for token in read)
    return total / draws


def l1(t: Tokens) -> float:
    """One gather of both axes: a warp's request touches a line for each distinct token. Offsets and x itself are read too."""
    share = t.C // t.G
    groups = min(64 // share, t.G)  # whose channels share a line of 128 bytes
    taps = sum(2 * t.B * t.H * t.W * (t.G / groups) * distinct(groups, length) for length in (t.W, t.H))
    return (taps + (x_bytes(t) + offset_bytes(t)) / 128) / SMS * LINE / CLOCK


def issue(t: Tokens, instructions: float, share: float = 1.0) -> float:
    """``instructions`` of a thread for each token and channel."""
    return instructions * t.size / WARP / SMS / SCHEDULERS / CLOCK / share


def atomics(t: Tokens) -> float:
    """dx scattered by red.global: both taps of both axes, in float32."""
    lanes = {2: 4, 4: 2}.get(t.C // t.G, 1)  # groups that share a sector
    return sum(2 * t.size * 4 / SECTOR * distinct(lanes, length) for length in (t.W, t.H)) / ATOMIC_RATE


def memory(read: float, written: float, kept: float = 0) -> float:
    """Time of memory; of what is read, ``kept`` bytes were just written, and may still be in the L2."""
    kept = min(kept, L2_KEEPS, read)
    return max((read - kept + written) / (BANDWIDTH * BANDWIDTH_SHARE), (read + written) / L2_BANDWIDTH)


def gemm(t: Tokens, products: int, read: float, written: float, kept: float = 0, share: float = GEMM_SHARE) -> float:
    """A kernel of as many [C, C] GEMMs over all tokens."""
    return together(products * gemm_flops(t) / (GEMM_RATE * share), memory(read, written, kept))
