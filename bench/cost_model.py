"""A cost model of token_mix on an H200 in bfloat16: the kernels that were measured, and those of today, predicted.

python bench/cost_model.py     the constants, the measured kernels, and today's at two image sizes

It says what bounds a kernel, and which change is worth trying first. Nothing here is measured but what is called measured; expect a single
new kernel to be off by 40 %.
"""

from __future__ import annotations

import cost_design
import cost_measured
import cost_resources
import torch
from cost_design import Parts
from cost_resources import CEILINGS, Constant, offset_bytes, x_bytes
from rich.console import Console
from rich.table import Table
from work import Tokens, limit, token_mix

from atm_triton.ops.token_mix.launch import candidates

DEVICE, DTYPE = "NVIDIA H200", "bfloat16"
AT_224 = list(cost_measured.KERNELS)
AT_800X1280 = [Tokens(16, 200, 320, 64, 32), Tokens(16, 100, 160, 128, 32), Tokens(16, 50, 80, 320, 80), Tokens(16, 25, 40, 512, 64)]


def defaults(t: Tokens) -> tuple[Parts, Parts]:
    """Cost of a forward and of a backward by the default strategy."""
    x = torch.empty(t.B, t.H, t.W, t.C, dtype=torch.bfloat16, device="meta")
    forward, backward = (next(candidates(kernel, x, t.G)) for kernel in ("token_mix", "token_mix_backward"))
    return (
        cost_design.forward(t, bool(forward["FOLD"]), bool(forward["SHARED"])),
        cost_design.backward(t, bool(backward["FOLD"]), bool(backward["LINES"]), bool(backward["SHARED"])),
    )


def predicted_ms(shape: str, dtype: str, what: str, device: str, commit: str = "") -> float | None:
    """Prediction for our compiled token_mix as of ``commit``, where the model knows its kernels."""
    t, both = Tokens.read(shape), what == "forward+backward"
    if (device, dtype) != (DEVICE, DTYPE) or t.C % 64 or t.C // t.G not in cost_design.KERNELS:
        return None
    if commit == cost_measured.COMMIT:
        microseconds = cost_measured.predicted_us(t, both)
        return microseconds and microseconds / 1e3
    return sum(us for parts in defaults(t)[: 1 + both] for us in parts.values()) / 1e3


# ---- the command


def constants() -> Table:
    table = Table("constant", "value", "unit", "origin", "source", title="constants")
    for name, value in (vars(cost_resources) | vars(cost_design)).items():
        if isinstance(value, Constant):
            table.add_row(name, f"{value:.4g}", value.unit, value.origin, value.source)
    return table


def kernels() -> Table:
    table = Table("shape", "kernel", "predicted µs", "measured µs", "ratio", title="token_mix as of 2026-11-26: predicted and measured")
    for (t, name), us in cost_measured.measured().items():
        predicted = cost_measured.predicted(t)[name]
        table.add_row(str(t), name, f"{predicted:.0f}", f"{us:.0f}", f"{predicted / us:.2f}")
    return table


def alternatives(stages: list[Tokens]) -> Table:
    table = Table("shape", "what", "µs", "of which", title="token_mix as it is (*), and otherwise: predicted, never measured")
    for number, t in enumerate(stages, 1):
        mb = f"x {x_bytes(t) / 1e6:.0f} MB, offsets {offset_bytes(t) / 1e6:.0f} MB"
        at_best = [1e6 * limit([token_mix(t)], 2, backward, CEILINGS) for backward in (False, True)]
        table.add_row(f"stage {number}: {t}", "limit forward; forward+backward", f"{at_best[0]:.0f}; {at_best[1]:.0f}", mb)
        by_default = defaults(t)
        for title, parts in cost_design.alternatives(t).items():
            star = "*" if parts in by_default else ""
            table.add_row("", f"{title} {star}", f"{sum(parts.values()):.0f}", ", ".join(f"{name} {us:.0f}" for name, us in parts.items()))
        table.add_section()
    return table


def main() -> None:
    console = Console(width=160)
    for table in (constants(), kernels(), alternatives(AT_224), alternatives(AT_800X1280)):
        console.print(table)


if __name__ == "__main__":
    main()
