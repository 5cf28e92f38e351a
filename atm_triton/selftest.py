"""A check of the operators on this machine: forward and every gradient against the float64 definitions."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from .backend import backend_info
from .testing import OPERATORS, Shape, exact_gradients, gradients, make, plain_errors, worst

SHAPE = Shape(2, 9, 11, 80, 4)  # odd sizes, and the channels of the network's third stage


def selftest(device: torch.device, console: Console) -> bool:
    """Print a row per operator and dtype, with the result or gradient that is the nearest to being wrong; whether all passed."""
    table = Table("operator", "dtype", "path", "error", "allowed", "")
    passed = True
    for name, operator in OPERATORS.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            inputs = make(operator, SHAPE, dtype, "cpu")
            exact = exact_gradients(operator.definition, inputs)
            actual = gradients(operator.function, tuple(t.detach().to(device).requires_grad_() for t in inputs))
            error, allowed = worst(tuple(t.cpu() for t in actual), plain_errors(name, SHAPE, dtype), exact)
            good = error <= allowed  # false for a NaN
            passed &= good
            path, verdict = backend_info(device, dtype).backend, "[green]ok[/]" if good else "[red]WRONG[/]"
            table.add_row(name, str(dtype).removeprefix("torch."), path, f"{error:.1e}", f"{allowed:.1e}", verdict)
    console.print(table)
    return passed
