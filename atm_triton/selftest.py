"""A check of the operators on this machine: forward and every gradient against the float64 definitions."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from . import axial_gather, branch_fusion, offset_fc, reference, token_mix
from .backend import backend_info

# Odd sizes, the channels of the network's third stage, and offsets (the second input of a gather) that point inside and far outside.
B, H, W, G, S = 2, 13, 17, 80, 4
C = G * S
TOKENS, SPREAD = (B, H, W, C), 6.0
DRAWS = 4  # of the gradient that comes in
FC, HIDDEN = ((C, C), (C,)), C // 4
OPERATORS: dict[str, tuple] = {
    "offset_fc": (offset_fc, reference.offset_fc, (TOKENS, (C,), (C,), (2 * G, C), (2 * G,))),
    "axial_gather w": (lambda x, o: axial_gather(x, o, "w"), lambda x, o: reference.axial_gather(x, o, "w"), (TOKENS, (B, H, W, G))),
    "axial_gather h": (lambda x, o: axial_gather(x, o, "h"), lambda x, o: reference.axial_gather(x, o, "h"), (TOKENS, (B, H, W, G))),
    "branch_fusion": (branch_fusion, reference.branch_fusion, (TOKENS, TOKENS, TOKENS, (B, 3, C))),
    "token_mix": (
        token_mix,
        reference.token_mix,
        (TOKENS, (B, H, W, 2 * G), *FC, *FC, (C, C), (HIDDEN, C), (HIDDEN,), (3 * C, HIDDEN), (3 * C,), *FC),
    ),
}


def _spread(name: str, i: int, shape: tuple[int, ...]) -> float:
    """Far offsets, and weights that keep products about 1."""
    if i == 1 and name.startswith(("axial_gather", "token_mix")):
        return SPREAD
    return shape[1] ** -0.5 if len(shape) == 2 else 1.0


def results(function, inputs: tuple[Tensor, ...], dy: Tensor) -> list[Tensor]:
    """The result, and the gradient of every input."""
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy.to(y))]


def errors(actual: list[Tensor], exact: list[Tensor]) -> Tensor:
    """Of each tensor, relative to its norm."""
    return torch.stack([(a.to(e) - e).norm() / e.norm().clamp_min(1e-30) for a, e in zip(actual, exact, strict=True)])


def exact_and_plain(definition, inputs: tuple[Tensor, ...], dys: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The ``results`` in float64 for the first of ``dys``; and the errors of plain PyTorch in the inputs' dtype, the worst of all ``dys``,
    as one draw of a small tensor says little."""
    exact: list[Tensor] = []
    plain = []
    for dy in dys:
        expected = results(definition, tuple(t.double() for t in inputs), dy)
        plain.append(errors(results(definition, inputs, dy), expected))
        exact = exact or expected
    return exact, torch.stack(plain).amax(0)


def worst(found: Tensor, plain: Tensor) -> tuple[float, float]:
    """The error of the tensor that keeps the tests' rule the least, and what the rule allows it: twice that of plain PyTorch."""
    allowed = 2 * plain + 2 * torch.finfo(torch.float32).eps
    number = (found / allowed).argmax()  # a NaN's if there is one, which Python's max may pass over
    return found[number].item(), allowed[number].item()


def selftest(device: torch.device, console: Console) -> bool:
    """Print a row per operator and dtype, with the result or gradient that is the nearest to being wrong; whether all passed."""
    table = Table("operator", "dtype", "path", "error", "allowed", "")
    passed = True
    for name, (function, definition, shapes) in OPERATORS.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            generator = torch.Generator().manual_seed(0)
            inputs = tuple((torch.randn(shape, generator=generator) * _spread(name, i, shape)).to(dtype) for i, shape in enumerate(shapes))
            y = definition(*inputs)
            dys = [torch.randn(y.shape, generator=generator).to(dtype) for _ in range(DRAWS)]
            exact, plain = exact_and_plain(definition, inputs, dys)
            found = errors(results(function, tuple(t.to(device) for t in inputs), dys[0].to(device)), exact)
            error, allowed = worst(found, plain)
            good = error <= allowed  # false for a NaN
            passed &= good
            verdict = "[green]ok[/]" if good else "[red]WRONG[/]"
            table.add_row(
                name, str(dtype).removeprefix("torch."), backend_info(device, dtype).backend, f"{error:.1e}", f"{allowed:.1e}", verdict
            )
    console.print(table)
    return passed
