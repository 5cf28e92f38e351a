"""Costs of token_mix, kernel by kernel, as it gathers once a pass, for GEMMs. Predicted: nothing of it was measured.

Registers and instructions are those of bench/results/machine-code-triton-3.9.csv. For other images they are the same, as no image size is
compiled in.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from typing import NamedTuple

from cost_kernel import Kernel, tiles
from cost_measured import start_and_cast
from cost_resources import (
    BANDWIDTH,
    GEMM_RATE,
    ISSUE_SHARE,
    OFFSET_SPREAD,
    PROLOGUE,
    SMALL_KERNEL,
    SMS,
    assumed,
    gemm,
    issue,
    memory,
    offset_bytes,
    together,
    x_bytes,
)
from work import Tokens

from atm_triton.ops.token_mix.strategy import LONGEST_LINE

Parts = dict[str, float]  # microseconds of each kernel, or of several small ones

FOLD_SHARE = assumed(0.15, "of GEMM_RATE", "reached by the GEMMs of one small matrix per sample")
FOLD_BACK_SHARE = assumed(0.3, "of GEMM_RATE", "likewise, of their gradients")
SAMPLE_SHARE = assumed(0.4, "of GEMM_RATE", "reached by GEMMs over one sample's tokens")
WEIGHT_SHARE = assumed(0.5, "of GEMM_RATE", "reached by gradients of weights")
SMALL_BACKWARD = assumed(15, "kernels", "7 GEMMs of samples, counted in a graph, and what Inductor joins the sums and casts into")
SHARED_SECTION = assumed(1.0, "µs", "as SECTION, of a gather out of shared memory: tokens and offsets come at once, and no GEMM follows")
LINE_WAIT = assumed(0.1, "µs", "that a program waits for each token of its line, though the next one's loads are under way")


class Compiled(NamedTuple):
    """Programs that a multiprocessor holds, and instructions per token and channel."""

    resident: int
    instructions: float


class Shared(NamedTuple):
    """A gather along one axis out of shared memory: instructions per token and channel of a tile, rows of zeros with them."""

    resident: int  # by the Triton, of 3.6 and 3.9, that needs more registers
    instructions: float  # of lines that are one piece, on average over the axes
    positions: int  # of lines that a tile has room for, for a token of channels
    channels: int


class Lines(NamedTuple):
    """Instructions of dx for each sum and token in its loop, and for each sum and block of tokens when it looks for readers."""

    resident: int
    instructions: float
    looking: float


class Kernels(NamedTuple):
    gather: Compiled
    shared: Shared
    doffset: Compiled
    scatter: Compiled
    dx: Lines


TOGETHER = 14  # tiles of a program that gathers out of shared memory

# By channels of an offset.
KERNELS = {
    2: Kernels(Compiled(4, 65), Shared(1, 29, 64, 64), Compiled(4, 71), Compiled(3, 94), Lines(20, 3.3, 6.2)),
    4: Kernels(Compiled(5, 48), Shared(4, 16, 32, 64), Compiled(5, 60), Compiled(4, 73), Lines(24, 3.1, 3.2)),
    8: Kernels(Compiled(7, 33), Shared(4, 16, 32, 64), Compiled(8, 39), Compiled(5, 64), Lines(28, 3.4, 1.8)),
}


def compiled(t: Tokens) -> Kernels:
    return KERNELS[t.C // t.G]


@functools.cache
def readers(length: int, groups: int) -> tuple[int, int, float]:
    """Count the positions of a line that a program of dx owns, such programs of a line, and the tokens through which each goes: from the
    first to the last of those that read there."""
    block = min(16, 1 << (length - 1).bit_length())
    blocks = -(-length // block)
    rng, draws, total = random.Random(0), 100, 0
    for _ in range(draws):
        q = rng.randrange(blocks) * block
        reads = [j for j in range(length) if any(-1 <= j + math.floor(OFFSET_SPREAD * rng.gauss(0, 1)) - q < block for _ in range(groups))]
        total += reads[-1] + 1 - reads[0] if reads else 0
    return block, blocks, total / draws


def matrices(t: Tokens) -> int:
    """Elements of one matrix [C, C] for every sample."""
    return t.B * t.C**2


def gather(t: Tokens) -> float:
    """Both axes, written; programs of 128 tokens and 64 channels, 16 tokens at a time."""
    resident, instructions = compiled(t).gather
    sections = min(128, t.H * t.W) / 16
    return Kernel("gather", tiles(t, 128, t.C // 64), resident, sections, instructions, passes=(3, 1)).microseconds(t)


def gather_shared(t: Tokens) -> float:
    """Cost of both axes, one after the other; programs of TOGETHER tiles, each line with a row of zeros, rounded up to a power of two."""
    resident, instructions, positions, channels = compiled(t).shared
    room = 1 << max(t.W, t.H).bit_length()
    total = 0.0
    for lines in (t.H, t.W):
        tiles_of_sample = math.ceil(lines / max(1, positions // room))
        programs = t.B * math.ceil(tiles_of_sample / TOGETHER) * t.C / channels
        padded = instructions * tiles_of_sample * max(positions, room) / (t.W * t.H)
        rounds = min(TOGETHER, tiles_of_sample)
        kernel = Kernel("gather shared", programs, resident, rounds, padded, 0, passes=(2, 0.5), section=SHARED_SECTION)
        total += kernel.microseconds(t)
    return total


def doffset(t: Tokens) -> float:
    """Gathers again; the gradients of both axes' gathered tokens are read."""
    resident, instructions = compiled(t).doffset
    return Kernel("doffset", tiles(t, 32, t.C // 64), resident, 1, instructions, passes=(3, 2)).microseconds(t)


def scatter(t: Tokens) -> float:
    """Cost with doffset, and dx begun in float32 and cast."""
    resident, instructions = compiled(t).scatter
    kernel = Kernel("scatter", tiles(t, 32, t.C // 64), resident, 1, instructions, passes=(3, 2), scatters=True)
    return kernel.microseconds(t) + start_and_cast(t)


def lines(t: Tokens) -> Parts:
    """Cost with doffset; both axes one after the other."""
    resident, instructions, looking = compiled(t).dx
    found = {"doffset": doffset(t)}
    for axis, length in (("W", t.W), ("H", t.H)):
        block, blocks, tokens = readers(length, 64 * t.G // t.C)
        programs = t.size / length * blocks * block / 1024  # of 1024 sums
        found[f"dx along {axis}"] = together(
            issue(t, (instructions * tokens + looking * blocks) * blocks * block / length, ISSUE_SHARE),
            programs / SMS / resident * (PROLOGUE + tokens * LINE_WAIT),
            memory(2 * x_bytes(t) + offset_bytes(t) / 2, x_bytes(t), kept=x_bytes(t)),
        )
    return found


def alpha() -> float:
    """The softmax weights: two small kernels."""
    return 2 * SMALL_KERNEL


def fold(t: Tokens) -> float:
    """The projection into the branches' matrices."""
    return 2 * SMALL_KERNEL + 12 * matrices(t) / BANDWIDTH + 6 * matrices(t) * t.C / (GEMM_RATE * FOLD_SHARE)


def fold_backward(t: Tokens) -> float:
    return 4 * SMALL_KERNEL + 36 * matrices(t) / BANDWIDTH + 18 * matrices(t) * t.C / (GEMM_RATE * FOLD_BACK_SHARE)


def forward(t: Tokens, folded: bool, shared: bool) -> Parts:
    x, parts = x_bytes(t), {"gather": gather_shared(t) if shared else gather(t), "sum of the means": SMALL_KERNEL, "alpha": alpha()}
    if folded:
        return parts | {"fold": fold(t), "GEMM of 3C": gemm(t, 3, 3 * x + 6 * matrices(t), x, kept=2 * x)}
    branches = 3 * gemm(t, 1, x, x)
    return parts | {"branches": branches, "fuse": together(memory(3 * x, x, kept=2 * x)), "projection": gemm(t, 1, x, x, kept=x)}


def backward(t: Tokens, folded: bool, by_lines: bool, shared: bool) -> Parts:
    x, parts = x_bytes(t), {"gather": gather_shared(t) if shared else gather(t), "alpha": alpha()}
    if folded:
        parts |= {"fold": fold(t), "dmatrices": 3 * gemm(t, 1, 2 * x, 4 * matrices(t), share=SAMPLE_SHARE)}
        parts |= {"small": SMALL_BACKWARD * SMALL_KERNEL + fold_backward(t)}
    else:
        parts |= {"dfused": gemm(t, 1, x, x), "branches again": 3 * gemm(t, 1, x, x)}
        parts |= {"fuse backward": together(memory(4 * x, 4 * x, kept=x)), "dprojection": gemm(t, 1, 2 * x, 0, kept=x, share=WEIGHT_SHARE)}
        parts |= {"dweights": 3 * gemm(t, 1, 2 * x, 0, kept=x, share=WEIGHT_SHARE), "small": SMALL_BACKWARD * SMALL_KERNEL}
    parts |= {"dgathered": 3 * gemm(t, 1, x, x)}
    return parts | (lines(t) if by_lines else {"scatter": scatter(t)})


def alternatives(t: Tokens) -> dict[str, Parts]:
    found = {}
    in_one_piece = max(t.W, t.H) < LONGEST_LINE  # of a line
    for folded, shared in itertools.product((False, True), (False, True)[: 1 + in_one_piece]):
        how = (", folded" if folded else "") + (", gathered by lines" if shared else "")
        found["forward" + how] = forward(t, folded, shared)
        for by_lines in (False, True):
            found[f"backward{how}, {'summed up by lines' if by_lines else 'scattered'}"] = backward(t, folded, by_lines, shared)
    return found
