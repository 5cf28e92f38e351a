"""A token_mix that gathers once per pass, out of shared memory, and leaves the rest to GEMMs: its cost. Nothing of it was measured.

The gather writes both gathered tensors and sums them for the means; a GEMM of K = 3C makes the sum of the branches, either with the
projection folded into matrices of each sample, or followed by it. The backward gathers again, and scatters the gathered gradients: by
red.global, or added up in shared memory, rows first, then columns.
"""

from __future__ import annotations

import math

from cost_resources import (
    BANDWIDTH,
    CLOCK,
    GEMM_RATE,
    ISSUE_SHARE,
    LAUNCH,
    PROLOGUE,
    SMALL_KERNEL,
    SMS,
    WARP,
    assumed,
    atomics,
    derived,
    gemm,
    gemm_flops,
    issue,
    memory,
    offset_bytes,
    together,
    x_bytes,
)
from work import Tokens

Parts = dict[str, float]  # microseconds of each kernel, or of several small ones

SKETCH = "machine code of a sketch for sm_90"
GATHER_PAIR = derived(45, "instructions", f"to gather two channels, {SKETCH}")
GATHER_QUAD = derived(60, "instructions", f"to gather four channels, {SKETCH}")
SCATTER_PAIR = derived(115, "instructions", f"to scatter two channels, {SKETCH}")
TILE_WAIT = assumed(0.5, "µs", "that a tile waits though the next one's loads are under way")
ATOMIC_CYCLES = assumed(2, "cycles", "of a warp's add to shared memory without bank conflicts")
FOLD_SHARE = assumed(0.15, "of GEMM_RATE", "reached by the GEMMs of one small matrix per sample")
FOLD_BACK_SHARE = assumed(0.3, "of GEMM_RATE", "likewise, of their gradients")
SAMPLE_SHARE = assumed(0.4, "of GEMM_RATE", "reached by GEMMs over one sample's tokens")
WEIGHT_SHARE = assumed(0.5, "of GEMM_RATE", "reached by gradients of weights")
FUSED_SHARE = assumed(0.35, "of GEMM_RATE", "reached by a GEMM in the kernel that gathers or scatters")


def padded(length: int) -> float:
    """Positions computed for each there is: a line is rounded up to a power of two, with room for a second tap."""
    return max(8, 1 << math.ceil(math.log2(length + 1))) / length


def lines(t: Tokens) -> float:
    """Of both axes."""
    return padded(t.W) + padded(t.H)


def shared(t: Tokens, channels: int, wavefronts: float) -> float:
    """Accesses to shared memory of a warp, for each element of so many channels."""
    return t.size / channels * lines(t) * wavefronts / WARP / SMS / CLOCK


def matrices(t: Tokens) -> int:
    """Elements of one matrix [C, C] for every sample."""
    return t.B * t.C**2


def gather(t: Tokens) -> float:
    channels = 2 if t.C // t.G == 2 else 4  # of an element, which one offset moves
    instructions = GATHER_PAIR if channels == 2 else GATHER_QUAD
    elements, resident, tiles = (
        (2048, 2, 8) if channels == 2 else (1024, 3, 4) if t.C == 128 else (512, 5, 4)
    )  # of a tile; programs; tiles of each
    waits = t.size / channels * lines(t) / elements / SMS / resident * (TILE_WAIT + PROLOGUE / tiles)
    return together(
        memory(2 * x_bytes(t) + offset_bytes(t), 2 * x_bytes(t), kept=x_bytes(t)),
        issue(t, instructions / channels * lines(t), ISSUE_SHARE),
        shared(t, channels, 1 + 5 * channels / 2),  # stored once; two taps; x, the offset and the result in global memory
        waits,
    )


def alpha() -> float:
    """The softmax weights: two small kernels, as today."""
    return 2 * (SMALL_KERNEL + 0.3)


def fold(t: Tokens) -> float:
    """The projection into the branches' matrices, in the kernel that makes alpha."""
    return 1 + 12 * matrices(t) / BANDWIDTH + 6 * matrices(t) * t.C / (GEMM_RATE * FOLD_SHARE)


def fold_backward(t: Tokens) -> float:
    return 4 * SMALL_KERNEL + 36 * matrices(t) / BANDWIDTH + 18 * matrices(t) * t.C / (GEMM_RATE * FOLD_BACK_SHARE)


def forward(t: Tokens, folded: bool) -> Parts:
    x, parts = x_bytes(t), {"gather": gather(t), "alpha": alpha()}
    if folded:
        return parts | {"fold": fold(t), "GEMM 3C": gemm(t, 3, 3 * x + 6 * matrices(t), x, kept=2 * x)}
    return parts | {"GEMM 3C": gemm(t, 3, 3 * x, x, kept=2 * x), "projection": gemm(t, 1, x, x, kept=x)}


def scatter(t: Tokens, axis: str) -> float:
    """Half of both axes' work. The columns add to what the rows have written."""
    x, offsets = x_bytes(t), offset_bytes(t) / 2
    return together(
        memory(3 * x + offsets, x + offsets, kept=x if axis == "rows" else 2 * x),
        issue(t, SCATTER_PAIR / 2 * lines(t), ISSUE_SHARE) / 2,
        shared(t, 2, 15 + 4 * ATOMIC_CYCLES) / 2,
    )


def start_and_cast(t: Tokens) -> float:
    """Of dx, summed in float32."""
    x = x_bytes(t)
    return 2 * LAUNCH + memory(x, 2 * x) + memory(2 * x, x)


def backward(t: Tokens, folded: bool, in_shared: bool) -> Parts:
    x, parts = x_bytes(t), {"gather": gather(t)}
    if folded:
        parts |= {"alpha and fold": alpha() + fold(t)}
        parts |= {"dmatrices": gemm(t, 3, 4 * x, 12 * matrices(t), kept=x, share=SAMPLE_SHARE)}
        parts |= {"small": 8 * SMALL_KERNEL + fold_backward(t), "dgathered": gemm(t, 3, x, 3 * x)}
    else:
        parts |= {"alpha": alpha(), "dfused": gemm(t, 1, x, 3 * x), "fused again and dalpha": gemm(t, 3, 4 * x, x, kept=3 * x)}
        parts |= {"dprojection": gemm(t, 1, 2 * x, 0, kept=x, share=WEIGHT_SHARE)}
        parts |= {"dweights": gemm(t, 3, 6 * x, 0, kept=4 * x, share=WEIGHT_SHARE)}
        parts |= {"small": 8 * SMALL_KERNEL, "dgathered": gemm(t, 3, 3 * x, 3 * x)}
    if in_shared:
        return parts | {f"scatter of {axis}": scatter(t, axis) for axis in ("rows", "columns")}
    red = together(atomics(t), memory(3 * x + offset_bytes(t), offset_bytes(t)))
    return parts | {"scatter": red, "start and cast of dx": start_and_cast(t)}


def fused_backward(t: Tokens) -> Parts:
    """The gather in the kernel of dmatrices, and the scatter in that of dgathered."""
    x, offsets, flops = x_bytes(t), offset_bytes(t) / 2, gemm_flops(t) / (GEMM_RATE * FUSED_SHARE)
    gathering, scattering = (issue(t, instructions / 2 * lines(t), ISSUE_SHARE) for instructions in (GATHER_PAIR, SCATTER_PAIR + 10))
    return {
        "alpha and fold": alpha() + fold(t),
        "gather and dmatrices": together(memory(4 * x + 2 * offsets, 24 * matrices(t), kept=2 * x), gathering, 3 * flops),
        "small": 8 * SMALL_KERNEL + fold_backward(t),
        "dgathered and scatter of rows": together(memory(2 * x + offsets, x + offsets), scattering / 2, 2 * flops),
        "dgathered and scatter of columns": together(memory(3 * x + offsets, x + offsets, kept=x), scattering / 2, flops),
    }


def alternatives(t: Tokens) -> dict[str, Parts]:
    """Folding pays with few channels alone."""
    found = {}
    for folded in (False, True)[: 1 + (t.C <= 128)]:
        how = ", projection folded" if folded else ""
        found["forward" + how] = forward(t, folded)
        for in_shared in (False, True):
            found[f"backward{how}, {'shared memory' if in_shared else 'red.global'}"] = backward(t, folded, in_shared)
    return found | ({"backward, fused, shared memory": fused_backward(t)} if t.C <= 128 else {})
