"""A check of the operators on this machine: forward and every gradient against the float64 definitions."""

from __future__ import annotations

import torch
from rich.console import Console

from .backend import backend_info
from .testing import OPERATORS, Shape, exact_gradients, gradients, make, plain_errors, worst

SHAPE = Shape(2, 9, 11, 80, 4)  # odd sizes, and the channels of the network's third stage


def selftest(device: torch.device, console: Console) -> bool:
    """Print a line per operator and dtype, with the result or gradient that is the nearest to being wrong; whether all passed."""
    console.print(f"{'operator':<16}{'dtype':<10}{'path':<9}{'error':>9}{'allowed':>9}", highlight=False)
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
            numbers = f"{error:>9.1e}{allowed:>9.1e}"
            console.print(f"{name:<16}{str(dtype).removeprefix('torch.'):<10}{path:<9}{numbers}  {verdict}", highlight=False)
    return passed
