"""A kernel that gathers, as the cost model sees it: in microseconds, the 3-norm of what its resources would need alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cost_resources import BANDWIDTH, GEMM_RATE, PROLOGUE, SECTION, SMS, atomics, gemm_flops, issue, l1, offset_bytes, together, x_bytes
from work import Tokens


@dataclass(frozen=True)
class Kernel:
    """One launch. Its registers decide how many programs a multiprocessor holds."""

    name: str
    programs: float
    resident: int  # programs per multiprocessor
    sections: float  # of a program: dependent gathers with their GEMM; a GEMM alone counts half
    instructions: float = 0  # per token and channel
    gathers: int = 1  # of both axes, over all programs
    gemms: int = 0  # [C, C], over all tokens
    passes: tuple[float, float] = (0, 0)  # over x and over the offsets, read or written
    scatters: bool = False
    section: float = SECTION  # microseconds

    def microseconds(self, t: Tokens) -> float:
        rounds = self.programs / SMS / self.resident
        rounds = rounds if rounds > 4 else math.ceil(rounds - 0.01)  # few programs leave multiprocessors idle in the last round
        return together(
            self.gathers * l1(t),
            rounds * (PROLOGUE + self.sections * self.section),
            issue(t, self.instructions),
            self.gemms * gemm_flops(t) / GEMM_RATE,
            (self.passes[0] * x_bytes(t) + self.passes[1] * offset_bytes(t)) / BANDWIDTH,
            atomics(t) if self.scatters else 0,
        )


def tiles(t: Tokens, tokens: int, blocks: int = 1) -> float:
    """Programs of ``tokens`` tokens of one sample, and one of ``blocks`` parts of the channels; a quarter tile counts as one."""
    return t.B * max(1, math.ceil(4 * t.H * t.W / tokens) / 4) * blocks
