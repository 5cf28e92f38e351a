"""The table of cases: every operator, its definition, its inputs, and a wrong definition that the tests must tell from it.

A new operator needs one row in OPERATORS; test_cases.py then checks it on every path, shape and dtype, test_graphs.py what torch.compile
makes of it.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from interpreter import interpreted
from torch import Tensor

import atm_triton
from atm_triton import reference


@dataclass(frozen=True)
class Shape:
    B: int
    H: int
    W: int
    G: int  # offset channels per axis
    S: int  # channels that share one

    def __str__(self) -> str:
        return f"{self.B}x{self.H}x{self.W}x{self.G}x{self.S}"

    @property
    def tokens(self) -> tuple[int, int, int, int]:
        return self.B, self.H, self.W, self.G * self.S


SHAPES = [
    Shape(2, 5, 7, 8, 2),
    Shape(1, 1, 9, 3, 1),  # one row
    Shape(2, 11, 1, 2, 4),  # one column
    Shape(1, 1, 1, 4, 2),
    Shape(3, 7, 13, 5, 3),  # primes, C not a power of two
    Shape(1, 6, 10, 80, 4),  # stage 3's channels: more than one block of them
    Shape(2, 3, 4, 1, 8),  # all channels share one offset
    Shape(0, 8, 4, 1, 2),  # empty batch
    Shape(1, 3, 70, 2, 8),  # a line longer than a block
]


def tokens(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randn(shape.tokens, generator=generator)


def offsets(shape: Shape, generator: torch.Generator, groups: int = 1) -> Tensor:
    """Mostly inside, some far outside."""
    return torch.randn(*shape.tokens[:3], groups * shape.G, generator=generator) * (1 + max(shape.H, shape.W) / 3)


def _offset_fc_inputs(shape: Shape, generator: torch.Generator) -> tuple[Tensor, ...]:
    C, outputs = shape.tokens[3], 2 * shape.G
    normal = partial(torch.randn, generator=generator)
    return tokens(shape, generator) + 0.5, 1 + 0.1 * normal(C), 0.1 * normal(C), normal(outputs, C) / C**0.5, normal(outputs)


def _gather_inputs(shape: Shape, generator: torch.Generator) -> tuple[Tensor, ...]:
    return tokens(shape, generator), offsets(shape, generator)


def _fusion_inputs(shape: Shape, generator: torch.Generator) -> tuple[Tensor, ...]:
    branches = (tokens(shape, generator) for _ in range(3))
    return *branches, torch.randn(shape.B, 3, shape.tokens[3], generator=generator)


def _mixer_inputs(shape: Shape, generator: torch.Generator) -> tuple[Tensor, ...]:
    C = shape.tokens[3]
    hidden = max(1, C // 4)

    def fc(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        return torch.randn(outputs, inputs, generator=generator) / inputs**0.5, torch.randn(outputs, generator=generator)

    branches = *fc(C, C), *fc(C, C), fc(C, C)[0]
    return tokens(shape, generator), offsets(shape, generator, 2), *branches, *fc(C, hidden), *fc(hidden, 3 * C), *fc(C, C)


@dataclass(frozen=True)
class Operator:
    op: str  # its name in torch.ops.atm_triton
    function: Callable[..., Tensor]
    definition: Callable[..., Tensor]
    inputs: Callable[[Shape, torch.Generator], tuple[Tensor, ...]]
    wrong: Callable[..., Tensor]  # must be told from the definition
    flops: Callable[[Shape], int]  # forward and backward, what the kernels compute and not what they compute again
    writes: list[list[str]]  # per forward kernel, the arguments that it writes
    writes_backward: list[list[str]]
    writes_deterministic: list[list[str]] | None = None  # where the deterministic backward has kernels of its own
    constants: tuple = ()  # what the registered operator takes after the tensors
    flat: bool = False  # whether it takes x as [B, N, C]


def _mixer_flops(shape: Shape) -> int:
    """Four products over the tokens, two FCs a sample, two gathers and the fusion."""
    C, hidden = shape.tokens[3], max(1, shape.tokens[3] // 4)
    return 8 * math.prod(shape.tokens) * C + 8 * shape.B * C * hidden + 13 * math.prod(shape.tokens)


GATHER: dict[str, Any] = {
    "flops": lambda shape: 12 * math.prod(shape.tokens),
    "writes": [["y_ptr"]],
    "writes_backward": [["doffset_ptr", "dx_ptr"]],
    "writes_deterministic": [["doffset_ptr"], ["dx_ptr"]],
}
ALPHA = [["pooled_ptr"], ["alpha_ptr", "steps_ptr"]]
OPERATORS = {
    "offset_fc": Operator(
        "offset_fc",
        atm_triton.offset_fc,
        reference.offset_fc,
        _offset_fc_inputs,
        lambda x, norm_weight, norm_bias, weight, bias: reference.offset_fc(x, norm_weight, norm_bias, weight, bias + 1),
        flops=lambda shape: 6 * math.prod(shape.tokens) * 2 * shape.G,
        writes=[["offset_ptr", "mean_ptr", "rstd_ptr"]],
        writes_backward=[["dx_ptr"], ["product_ptr", "dbias_ptr"]],
        constants=(1e-5,),
    ),
    "axial_gather_w": Operator(
        "axial_gather",
        lambda x, offset: atm_triton.axial_gather(x, offset, "w"),
        lambda x, offset: reference.axial_gather(x, offset, "w"),
        _gather_inputs,
        lambda x, offset: reference.axial_gather(x, offset + 1, "w"),
        **GATHER,
        constants=("w",),
    ),
    "axial_gather_h": Operator(
        "axial_gather",
        lambda x, offset: atm_triton.axial_gather(x, offset, "h"),
        lambda x, offset: reference.axial_gather(x, offset, "h"),
        _gather_inputs,
        lambda x, offset: reference.axial_gather(x, offset + 1, "h"),
        **GATHER,
        constants=("h",),
    ),
    "branch_fusion": Operator(
        "branch_fusion",
        atm_triton.branch_fusion,
        reference.branch_fusion,
        _fusion_inputs,
        lambda w, h, c, logits: reference.branch_fusion(h, w, c, logits),
        flops=lambda shape: 14 * math.prod(shape.tokens),
        writes=[["y_ptr"]],
        writes_backward=[["dw_ptr", "dh_ptr", "dc_ptr", "partial_ptr"]],
    ),
    "token_mix": Operator(
        "token_mix",
        atm_triton.token_mix,
        reference.token_mix,
        _mixer_inputs,
        lambda x, offset, *weights: reference.token_mix(x, offset + 1, *weights),
        flops=lambda shape: 3 * _mixer_flops(shape),
        writes=[["partial_ptr"], *ALPHA, ["y_ptr"]],
        writes_backward=[*ALPHA, ["y_ptr", "partial_ptr"], ["product_ptr"], ["dx_ptr"], ["doffset_ptr", "dx_ptr"]],
        writes_deterministic=[
            *ALPHA,
            ["y_ptr", "partial_ptr"],
            ["product_ptr"],
            ["dx_ptr"],
            ["doffset_ptr", "dx_ptr"],
            ["dx_ptr"],
            ["dx_ptr"],
        ],
        flat=True,
    ),
}


# ---- paths: where the same case runs


@dataclass(frozen=True)
class Path:
    name: str
    device: str
    dtypes: tuple[torch.dtype, ...]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with interpreted() if self.name == "interpreter" else contextlib.nullcontext():
            yield

    def __str__(self) -> str:
        return self.name


HALVES = (torch.float32, torch.bfloat16, torch.float16)
PLAIN = Path("plain", "cpu", (*HALVES, torch.float64))
INTERPRETER = Path("interpreter", "cpu", HALVES)  # the real kernels, on CPU tensors
GPU = Path("gpu", "cuda", HALVES)
on_gpu = pytest.param(GPU, marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")])
PATHS = [PLAIN, INTERPRETER, on_gpu]


def make(operator: Operator, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(t.to(device, dtype).requires_grad_() for t in operator.inputs(shape, generator))


def gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], seed: int = 1) -> tuple[Tensor, ...]:
    """The result and the gradient of every input, for one upstream gradient that depends on the seed alone."""
    y = function(*inputs)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.device, torch.float16).to(y.dtype)
    return y, *torch.autograd.grad(y, inputs, dy)


# ---- the one tolerance rule


def error(actual: Tensor, exact: Tensor) -> float:
    """Relative, in the L2 norm, over all but the NaNs of ``exact``."""
    known = ~exact.isnan()
    actual, exact = actual.detach().cpu().double()[known], exact[known]
    if exact.numel() == 0:
        return 0.0
    difference = (actual - exact).norm()
    return (difference / exact.norm().clamp_min(1e-30)).item() if exact.norm() > 0 else difference.item()


@functools.cache
def plain_errors(name: str, shape: Shape, dtype: torch.dtype) -> tuple[float, ...]:
    """How far plain PyTorch in ``dtype`` is from float64, for the result and each gradient: the worst of four draws, as one draw of a small
    tensor says little."""
    operator = OPERATORS[name]
    draws = []
    for seed in range(4):
        inputs = make(operator, shape, dtype, "cpu", seed)
        exact = gradients(operator.definition, tuple(t.detach().double().requires_grad_() for t in inputs))
        draws.append([error(p, e.detach()) for p, e in zip(gradients(operator.definition, inputs), exact, strict=True)])
    return tuple(max(column) for column in zip(*draws, strict=True))


def assert_as_exact(actual: Tensor, plain: Tensor | float, exact: Tensor, what: str = "result") -> None:
    """``actual`` may be twice as far from the float64 result as plain PyTorch in the same dtype is, plus a tiny floor.

    ``plain``: what that gives, or how far it is.
    """
    assert actual.shape == exact.shape, f"{what}: shape {list(actual.shape)}, expected {list(exact.shape)}"
    exact = exact.detach().cpu().double()
    assert not (actual.cpu().isnan() & ~exact.isnan()).any(), f"{what}: NaN where the reference has none"
    assert not (exact.isnan() & ~actual.cpu().isnan()).any(), f"{what}: no NaN where the reference has one"
    roundings = 64 if actual.dtype == torch.float64 else 2  # float64 has no finer reference, only itself in another order
    plain_error = error(plain, exact) if isinstance(plain, Tensor) else plain
    limit = 2 * plain_error + roundings * torch.finfo(reference.accumulation_dtype(actual)).eps
    off = error(actual, exact)
    assert off <= limit, f"{what}: relative error {off:.2e}, allowed {limit:.2e}"
