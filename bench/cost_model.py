"""A cost model of token_mix on an H200 in bfloat16: its kernels, predicted and measured, and a design that gathers once per pass.

python bench/cost_model.py     the constants, today's kernels, and the alternatives at two image sizes

It says what bounds a kernel, and which change is worth trying first. Nothing here is measured but what is called measured; expect a single
new kernel to be off by 40 %.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import cost_design
import cost_resources
from cost_resources import (
    BANDWIDTH,
    BANDWIDTH_SHARE,
    CEILINGS,
    GEMM_RATE,
    PROLOGUE,
    SECTION,
    SMALL_KERNEL,
    SMS,
    Constant,
    atomics,
    gemm_flops,
    issue,
    l1,
    offset_bytes,
    together,
    x_bytes,
)
from rich.console import Console
from rich.table import Table
from work import Tokens, limit, token_mix

MEASURED = Path(__file__).parent / "results" / "token-mix-kernels-nvidia-h200.csv"
DEVICE, DTYPE = "NVIDIA H200", "bfloat16"
SMALL_FORWARD, SMALL_BACKWARD = 2, 25  # small kernels of PyTorch: the softmax weights; casts, sums and the like

AT_224 = [Tokens(128, 56, 56, 64, 32), Tokens(128, 28, 28, 128, 32), Tokens(128, 14, 14, 320, 80), Tokens(128, 7, 7, 512, 64)]
AT_800X1280 = [Tokens(16, 200, 320, 64, 32), Tokens(16, 100, 160, 128, 32), Tokens(16, 50, 80, 320, 80), Tokens(16, 25, 40, 512, 64)]


@dataclass(frozen=True)
class Kernel:
    """One launch of today's, as compiled by Triton 3.6: its registers decide how many programs a multiprocessor holds. The instructions are
    those of Triton 3.9 in bench/results/machine-code-triton-3.9.csv as of commit 45e0c8a, and within two of those in it now."""

    name: str  # mean, fwd, dw, dx, or the identity branch of dx
    programs: float
    resident: int  # programs per multiprocessor
    sections: float  # of a program: dependent gathers with their GEMM; a GEMM alone counts half
    instructions: int = 0  # per token and channel
    gathers: int = 1  # of both axes, over all programs
    gemms: int = 0  # [C, C], over all tokens
    reads: tuple[float, float] = (0, 0)  # passes over x and over the offsets
    scatters: bool = False

    def microseconds(self, t: Tokens) -> float:
        rounds = self.programs / SMS / self.resident
        rounds = rounds if rounds > 4 else math.ceil(rounds - 0.01)  # few programs leave multiprocessors idle in the last round
        return together(
            self.gathers * l1(t),
            rounds * (PROLOGUE + self.sections * SECTION),
            issue(t, self.instructions),
            self.gemms * gemm_flops(t) / GEMM_RATE,
            (self.reads[0] * x_bytes(t) + self.reads[1] * offset_bytes(t)) / BANDWIDTH,
            atomics(t) if self.scatters else 0,
        )


def tiles(t: Tokens, tokens: int, blocks: int = 1) -> float:
    """Programs of ``tokens`` tokens of one sample, and one of ``blocks`` parts of the channels; a quarter tile counts as one."""
    return t.B * max(1, math.ceil(4 * t.H * t.W / tokens) / 4) * blocks


def mean(t: Tokens, blocks: int, resident: int, sections: float, instructions: int) -> Kernel:
    return Kernel("mean", tiles(t, 256, blocks), resident, sections, instructions, reads=(1, 1))


def fwd(t: Tokens, blocks: int, resident: int, sections: float, instructions: int) -> Kernel:
    """Every block of outputs gathers all inputs."""
    return Kernel("fwd", tiles(t, 64, blocks), resident, sections, instructions, gathers=blocks, gemms=4, reads=(2, 1))


def dw(programs: int, resident: int, sections: float, instructions: int) -> Kernel:
    return Kernel("dw", programs, resident, sections, instructions, gemms=3)


def dx(t: Tokens, blocks: int, sections: float, instructions: int, identity_resident: int, identity_sections: float) -> list[Kernel]:
    """The scatter, and the identity branch, which moves x three times."""
    reads = (3 / BANDWIDTH_SHARE, 0)
    return [
        Kernel("dx", tiles(t, 64, blocks), 2, sections, instructions, scatters=True),
        Kernel("dx", tiles(t, 64, blocks), identity_resident, identity_sections, gathers=0, reads=reads),
    ]


S1, S2, S3, S4 = AT_224
# Forward: mean and the first fwd; backward: the fwd again where the projection is not folded, dw, dx.
TODAY: dict[Tokens, tuple[list[Kernel], list[Kernel]]] = {
    S1: ([mean(S1, 1, 5, 16, 47), fwd(S1, 1, 3, 3, 60)], [dw(384, 2, 98, 93), *dx(S1, 1, 3, 89, 5, 0.5)]),
    S2: ([mean(S2, 2, 7, 16, 32), fwd(S2, 1, 3, 6, 53)], [fwd(S2, 1, 1, 13, 76), dw(264, 2, 75, 74), *dx(S2, 2, 4, 84, 4, 1)]),
    S3: ([mean(S3, 5, 7, 13, 32), fwd(S3, 1, 1, 15, 71)], [fwd(S3, 2, 1, 28, 135), dw(525, 1, 28, 142), *dx(S3, 5, 7, 108, 4, 2.5)]),
    S4: ([mean(S4, 8, 7, 4, 27), fwd(S4, 2, 1, 20, 71)], [fwd(S4, 4, 2, 43, 150), dw(528, 2, 24, 430), *dx(S4, 8, 10, 150, 4, 4)]),
}


def today(t: Tokens) -> dict[str, float]:
    """Microseconds of each kernel in a forward and backward, both calls of fwd together."""
    found: dict[str, float] = {}
    for kernel in [*TODAY[t][0], *TODAY[t][1]]:
        found[kernel.name] = found.get(kernel.name, 0) + kernel.microseconds(t)
    return found


def predicted_ms(shape: str, dtype: str, what: str, device: str) -> float | None:
    """Of today's compiled token_mix, where the model knows its kernels: with PyTorch's small ones, and dx's float32 sum begun and cast."""
    t = Tokens(*map(int, re.split("x|/G", shape)))
    if (device, dtype) != (DEVICE, DTYPE) or t not in TODAY:
        return None
    forward, backward = TODAY[t]
    microseconds = SMALL_FORWARD * SMALL_KERNEL + sum(kernel.microseconds(t) for kernel in forward)
    if what == "forward+backward":
        microseconds += SMALL_BACKWARD * SMALL_KERNEL + cost_design.start_and_cast(t) + sum(kernel.microseconds(t) for kernel in backward)
    return microseconds / 1e3


def measured_kernels() -> dict[tuple[Tokens, str], float]:
    with MEASURED.open(newline="") as stream:
        return {(Tokens(*map(int, re.split("x|/G", row["shape"]))), row["kernel"]): float(row["us"]) for row in csv.DictReader(stream)}


# ---- the command


def constants() -> Table:
    table = Table("constant", "value", "unit", "origin", "source", title="constants")
    for name, value in (vars(cost_resources) | vars(cost_design)).items():
        if isinstance(value, Constant):
            table.add_row(name, f"{value:.4g}", value.unit, value.origin, value.source)
    return table


def kernels() -> Table:
    table = Table("shape", "kernel", "predicted µs", "measured µs", "ratio", title="token_mix as it is: predicted and measured")
    for (t, name), us in measured_kernels().items():
        predicted = today(t)[name]
        table.add_row(str(t), name, f"{predicted:.0f}", f"{us:.0f}", f"{predicted / us:.2f}")
    return table


def alternatives(stages: list[Tokens]) -> Table:
    table = Table("shape", "what", "µs", "of which", title="token_mix gathering once: predicted, never measured")
    for number, t in enumerate(stages, 1):
        mb = f"x {x_bytes(t) / 1e6:.0f} MB, offsets {offset_bytes(t) / 1e6:.0f} MB"
        at_best = [1e6 * limit([token_mix(t)], 2, backward, CEILINGS) for backward in (False, True)]
        table.add_row(f"stage {number}: {t}", "limit forward; forward+backward", f"{at_best[0]:.0f}; {at_best[1]:.0f}", mb)
        for title, parts in cost_design.alternatives(t).items():
            table.add_row("", title, f"{sum(parts.values()):.0f}", ", ".join(f"{name} {us:.0f}" for name, us in parts.items()))
        table.add_section()
    return table


def main() -> None:
    console = Console(width=160)
    for table in (constants(), kernels(), alternatives(AT_224), alternatives(AT_800X1280)):
        console.print(table)


if __name__ == "__main__":
    main()
