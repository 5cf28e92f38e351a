"""Strategies of token_mix: its kernels, what they fold, gather and sum up by lines; or, compiled, plain PyTorch.

bench/cost_model.py says what is expected of each, and test_cost_model.py compares it with the defaults here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from operator import mul

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..._triton import why_plain
from ...tuning import tables

FOLDED_FROM = 4  # tokens of a sample per channel, from which its matrices of C * C cost less than they save
SHORTEST_SHARED = 16  # tokens of a line, from which it is gathered out of shared memory by default, up to LONGEST_LINE
LONGEST_LINE = 64  # whose dx is summed up in registers by default: at worst the work grows with its square, of atomics with its length


def candidates(kernel: str, x: Tensor, groups: int) -> Iterator[dict[str, int]]:
    """Yield strategies of ``"token_mix"`` and ``"token_mix_backward"`` that are worth trying, the default first."""
    C, axes = int(x.shape[-1]), [tables._hint(size) for size in x.shape[1:-1]]
    # Folding saves, of an image, 1 GEMM of 4 over the tokens forward, 5 of 11 backward, and a pass over the branches.
    folded = int(math.prod(axes) >= FOLDED_FROM * C)
    # In words of four channels: with two, Triton 3.6 gives threads so many registers that one program fills a multiprocessor.
    shared = int(x.element_size() == 2 and C // groups % 4 == 0 and SHORTEST_SHARED <= max(axes) < LONGEST_LINE)
    if kernel == "token_mix":
        yield dict(FOLD=folded, SHARED=shared)
        yield dict(FOLD=1 - folded, SHARED=shared)
        yield dict(FOLD=folded, SHARED=1 - shared)
        return
    lines = int(max(axes) <= LONGEST_LINE)
    # The gradient of a sample's matrices may leave float16's range.
    foldings = (folded, 1 - folded) if x.dtype != torch.float16 else (0,)
    yield dict(FOLD=foldings[0], LINES=lines, SHARED=shared)
    yield dict(FOLD=foldings[0], LINES=1 - lines, SHARED=shared)
    for other in foldings[1:]:
        yield dict(FOLD=other, LINES=lines, SHARED=shared)
    yield dict(FOLD=foldings[0], LINES=lines, SHARED=1 - shared)


def is_plain_faster(x: Tensor, groups: int) -> bool:
    """Tell whether a graph that is being compiled takes ``plain.token_mix``, whose backward reads what the forward has saved.

    On a CPU where nothing is folded; on a GPU where ``tune`` has measured it. Where an image size is not known the operator is taken,
    rather than to guard on it.
    """
    if not torch.compiler.is_compiling() or _is_exporting():
        return False
    _, *axes, C = x.shape
    if _runs_kernels(x.device.type, x.dtype):
        found = _measured_faster(x.device, x.dtype, torch.is_grad_enabled())
        here = *axes, C, groups
        return any(
            len(here) == len(sizes) and all(statically_known_true(a == b) for a, b in zip(here, sizes, strict=True)) for sizes in found
        )
    # In float32, where the means are of the same precision either way.
    tokens = reduce(mul, axes)
    return x.dtype == torch.float32 and statically_known_true(tokens > 0) and statically_known_true(tokens < FOLDED_FROM * C)


# torch.compile asks these once, instead of looking into them.


@torch.compiler.assume_constant_result
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()  # which torch 2.11 would take for True whenever it compiles


@torch.compiler.assume_constant_result
def _runs_kernels(device: str, dtype: torch.dtype) -> bool:
    return why_plain(torch.device(device), dtype) is None


@torch.compiler.assume_constant_result
def _measured_faster(device: torch.device, dtype: torch.dtype, training: bool) -> tuple[tuple[int, ...], ...]:
    """The axes, C and offset channels per axis, where compiled plain PyTorch was."""
    return tables.sizes(device, plain_choice(training), dtype, dict(PLAIN=1))


def plain_choice(training: bool) -> str:
    """Name in a table of the choice between the operator and plain PyTorch, both compiled."""
    return "token_mix_plain_training" if training else "token_mix_plain"
