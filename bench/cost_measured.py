"""The kernels of token_mix that were measured on an H200 on 2026-11-26, on which the cost model's constants are fitted.

They gathered inside their GEMMs, once for every pass and block of outputs. None is left; cost_design.py prices what has taken their place.
"""

from __future__ import annotations

import csv
from pathlib import Path

from cost_kernel import Kernel, tiles
from cost_resources import BANDWIDTH_SHARE, LAUNCH, SMALL_KERNEL, memory, x_bytes
from work import Tokens

MEASURED = Path(__file__).parent / "results" / "token-mix-kernels-nvidia-h200.csv"
COMMIT = "2c7c8887d205+"  # what was measured
SMALL_FORWARD, SMALL_BACKWARD = 2, 25  # small kernels of PyTorch: the softmax weights; casts, sums and the like


def mean(t: Tokens, blocks: int, resident: int, sections: float, instructions: int) -> Kernel:
    return Kernel("mean", tiles(t, 256, blocks), resident, sections, instructions, passes=(1, 1))


def fwd(t: Tokens, blocks: int, resident: int, sections: float, instructions: int) -> Kernel:
    """The kernel fwd, where every block of outputs gathers all inputs."""
    return Kernel("fwd", tiles(t, 64, blocks), resident, sections, instructions, gathers=blocks, gemms=4, passes=(2, 1))


def dw(programs: int, resident: int, sections: float, instructions: int) -> Kernel:
    return Kernel("dw", programs, resident, sections, instructions, gemms=3)


def dx(t: Tokens, blocks: int, sections: float, instructions: int, identity_resident: int, identity_sections: float) -> list[Kernel]:
    """The scatter, and the identity branch, which moves x three times."""
    passes = (3 / BANDWIDTH_SHARE, 0)
    return [
        Kernel("dx", tiles(t, 64, blocks), 2, sections, instructions, scatters=True),
        Kernel("dx", tiles(t, 64, blocks), identity_resident, identity_sections, gathers=0, passes=passes),
    ]


S1, S2, S3, S4 = Tokens(128, 56, 56, 64, 32), Tokens(128, 28, 28, 128, 32), Tokens(128, 14, 14, 320, 80), Tokens(128, 7, 7, 512, 64)
# As compiled by Triton 3.6; the instructions are those of Triton 3.9 in machine-code-triton-3.9.csv as of commit 45e0c8a. Forward: mean and
# the first fwd; backward: the fwd again where the projection is not folded, dw, dx.
KERNELS: dict[Tokens, tuple[list[Kernel], list[Kernel]]] = {
    S1: ([mean(S1, 1, 5, 16, 47), fwd(S1, 1, 3, 3, 60)], [dw(384, 2, 98, 93), *dx(S1, 1, 3, 89, 5, 0.5)]),
    S2: ([mean(S2, 2, 7, 16, 32), fwd(S2, 1, 3, 6, 53)], [fwd(S2, 1, 1, 13, 76), dw(264, 2, 75, 74), *dx(S2, 2, 4, 84, 4, 1)]),
    S3: ([mean(S3, 5, 7, 13, 32), fwd(S3, 1, 1, 15, 71)], [fwd(S3, 2, 1, 28, 135), dw(525, 1, 28, 142), *dx(S3, 5, 7, 108, 4, 2.5)]),
    S4: ([mean(S4, 8, 7, 4, 27), fwd(S4, 2, 1, 20, 71)], [fwd(S4, 4, 2, 43, 150), dw(528, 2, 24, 430), *dx(S4, 8, 10, 150, 4, 4)]),
}


def predicted(t: Tokens) -> dict[str, float]:
    """Microseconds of each kernel in a forward and backward, both calls of fwd together."""
    found: dict[str, float] = {}
    for kernel in [*KERNELS[t][0], *KERNELS[t][1]]:
        found[kernel.name] = found.get(kernel.name, 0) + kernel.microseconds(t)
    return found


def predicted_us(t: Tokens, backward: bool) -> float | None:
    """Prediction for the whole compiled token_mix that was measured: with PyTorch's small kernels, and dx's float32 sum begun and cast."""
    if t not in KERNELS:
        return None
    microseconds = SMALL_FORWARD * SMALL_KERNEL + sum(kernel.microseconds(t) for kernel in KERNELS[t][0])
    if backward:
        microseconds += SMALL_BACKWARD * SMALL_KERNEL + start_and_cast(t) + sum(kernel.microseconds(t) for kernel in KERNELS[t][1])
    return microseconds


def start_and_cast(t: Tokens) -> float:
    """Cost of dx's start and cast, summed in float32."""
    x = x_bytes(t)
    return 2 * LAUNCH + memory(x, 2 * x) + memory(2 * x, x)


def measured() -> dict[tuple[Tokens, str], float]:
    with MEASURED.open(newline="") as stream:
        return {(Tokens.read(row["shape"]), row["kernel"]): float(row["us"]) for row in csv.DictReader(stream)}
