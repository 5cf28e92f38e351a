"""Rules and objects of the tests: the table of operators and the tolerance, for ``selftest``, the tests and the benchmark alike.

A new operator needs one row in OPERATORS; every test of the table, the selftest and the benchmark then cover it.

The rule: a result may be twice as far from the definition in float64, on the same rounded inputs, as the definition in the result's own
dtype is, plus a tiny floor. There is no other tolerance.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import axial_gather, branch_fusion, flops, offset_fc, plain, reference, token_mix
from .axes import AXES, as_maps

Function = Callable[..., Tensor]
Sizes = dict[str, tuple[int, ...]]  # by the name of an input
DEPTH = 3  # frames of videos


@dataclass(frozen=True)
class Shape:
    """Tokens ``[B, H, W, G * S]`` with G offset channels per axis, each for S channels; of sequences a row, of videos DEPTH frames."""

    B: int
    H: int
    W: int
    G: int
    S: int

    def __str__(self) -> str:
        return f"{self.B}x{self.H}x{self.W}x{self.G}x{self.S}"

    @property
    def C(self) -> int:
        return self.G * self.S

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.of(2)

    def of(self, axes: int) -> tuple[int, ...]:
        """Size of tokens with that many axes."""
        return self.B, *(DEPTH, self.H, self.W)[3 - axes :], self.C

    @property
    def spread(self) -> float:
        """Spread of offsets, in tokens: most point inside, some far outside."""
        return 1 + max(self.H, self.W) / 3


@dataclass(frozen=True)
class Operator:
    op: str  # its name in torch.ops.atm_triton
    function: Function
    definition: Function
    inputs: Callable[[Shape], Sizes]
    wrong: Function  # must be told from the definition
    elementwise: tuple[int, int]  # FLOPs per value of the tokens, forward and backward, that are in no GEMM
    writes: list[list[str]]  # per forward kernel, the arguments that it writes
    writes_backward: list[list[str]]
    writes_deterministic: list[list[str]] | None = None  # where the deterministic backward has kernels of its own
    plain: Function | None = None  # what to compile for comparison, where it is not the definition
    registered: Callable[..., tuple[object, ...]] = lambda *inputs: inputs  # what the registered operator takes
    mean: float = 0.0  # of x
    axes: int = 2  # of the tokens


def _offset_fc_inputs(shape: Shape) -> Sizes:
    C, outputs = shape.C, 2 * shape.G
    return {"x": shape.tokens, "norm_weight": (C,), "norm_bias": (C,), "weight": (outputs, C), "bias": (outputs,)}


def mixer_inputs(shape: Shape, outputs: int | None = None, axes: int = 2) -> Sizes:
    """Shapes of the inputs of ``token_mix``, by default with as many outputs as channels."""
    C, O = shape.C, outputs or shape.C  # noqa: E741
    hidden = reference.bottleneck(O)
    fcs = {"w": (O, C), "h": (O, C), "c": (O, C), "fc1": (hidden, O), "fc2": ((axes + 1) * O, hidden), "proj": (O, O), "t": (O, C)}
    for absent in ("h", "t")[axes - 1 :]:
        del fcs[absent]
    sizes: Sizes = {"x": shape.of(axes), "offset": (*shape.of(axes)[:-1], axes * shape.G)}
    for name, size in fcs.items():
        sizes[f"{name}.weight"] = size
        if name != "c":
            sizes[f"{name}.bias"] = size[:1]
    return sizes


def _gather(axis: str, axes: int = 2) -> Operator:
    def registered(x: Tensor, offset: Tensor) -> tuple[object, ...]:
        maps, along = as_maps(x, axis)
        return maps, as_maps(offset, axis)[0], along

    return Operator(
        "axial_gather",
        partial(axial_gather, axis=axis),
        partial(reference.axial_gather, axis=axis),
        lambda shape: {"x": shape.of(axes), "offset": (*shape.of(axes)[:-1], shape.G)},
        lambda x, offset: reference.axial_gather(x, offset + 1, axis),
        elementwise=flops.GATHER,
        writes=[["y_ptr"]],
        writes_backward=[["doffset_ptr", "dx_ptr"]],
        writes_deterministic=[["doffset_ptr"], ["dx_ptr"]],
        plain=partial(plain.axial_gather, axis=axis),
        registered=registered,
        axes=axes,
    )


def _fusion(axes: int) -> Operator:
    """Inputs are in the order of ``branch_fusion``, without those that there are not."""
    names = [name for name in "whc" if name in f"{AXES[:axes]}c"]
    last = ["t"] if axes > 2 else []

    def of(function: Function) -> Function:
        return lambda *inputs: function(**dict(zip([*names, "logits", *last], inputs, strict=True)), **({"h": None} if axes == 1 else {}))

    return Operator(
        "branch_fusion",
        of(branch_fusion),
        of(reference.branch_fusion),
        lambda shape: {name: (shape.B, axes + 1, shape.C) if name == "logits" else shape.of(axes) for name in (*names, "logits", *last)},
        lambda w, *others: of(reference.branch_fusion)(others[0], w, *others[1:]),
        elementwise=flops.fusion(axes + 1),
        writes=[["y_ptr"]],
        writes_backward=[[f"d{name}_ptr" for name in f"{AXES[:axes]}c"] + ["partial_ptr"]],
        registered=lambda *inputs: (*inputs, None) if axes == 2 else (inputs[0], None, *inputs[1:], None) if axes == 1 else inputs,
        axes=axes,
    )


def _mixer(axes: int) -> Operator:
    """Inputs are in the order of ``token_mix``, without those that there are not."""

    def arguments(*inputs: Tensor) -> tuple[Any, ...]:
        return (*inputs[:4], None, None, *inputs[4:]) if axes == 1 else inputs

    branches = [f"d{name}_ptr" for name in f"{AXES[:axes]}c"]
    return Operator(
        "token_mix",
        lambda *inputs: token_mix(*arguments(*inputs)),
        lambda *inputs: reference.token_mix(*arguments(*inputs)),
        partial(mixer_inputs, axes=axes),
        lambda x, offset, *weights: reference.token_mix(*arguments(x, offset + 1, *weights)),
        elementwise=flops.mix(axes),
        writes=[["gathered_ptr", "partial_ptr"], ["pooled_ptr"], ["alpha_ptr"], ["y_ptr"]],
        writes_backward=[
            ["gathered_ptr", "partial_ptr"],
            ["pooled_ptr"],
            ["alpha_ptr"],
            [*branches, "y_ptr", "partial_ptr"],
            ["doffset_ptr"],
            *[["dx_ptr"]] * axes,
        ],
        plain=lambda *inputs: plain.token_mix(*arguments(*inputs)),
        registered=lambda x, *others: (
            x.detach().flatten(1, -2).requires_grad_(),
            *arguments(x, *others)[1:],
            *[None] * (0 if axes > 2 else 2),
        ),
        axes=axes,
    )


OPERATORS = {
    "offset_fc": Operator(
        "offset_fc",
        offset_fc,
        reference.offset_fc,
        _offset_fc_inputs,
        lambda x, norm_weight, norm_bias, weight, bias: reference.offset_fc(x, norm_weight, norm_bias, weight, bias + 1),
        elementwise=(0, 0),
        writes=[["offset_ptr", "mean_ptr", "rstd_ptr"]],
        writes_backward=[["dx_ptr"], ["dscaled_weight_ptr", "dbias_ptr"]],
        registered=lambda *inputs: (*inputs, 1e-5),
        mean=0.5,
    ),
    "axial_gather_w": _gather("w"),
    "axial_gather_h": _gather("h"),
    "axial_gather_t": _gather("t", axes=3),
    "branch_fusion": _fusion(axes=2),
    "branch_fusion_1d": _fusion(axes=1),
    "branch_fusion_3d": _fusion(axes=3),
    "token_mix": _mixer(axes=2),
    "token_mix_1d": _mixer(axes=1),
    "token_mix_3d": _mixer(axes=3),
}


# ---- inputs and results


def make(
    operator: Operator, shape: Shape, dtype: torch.dtype, device: torch.device | str, seed: int = 0, spread: float | None = None
) -> tuple[Tensor, ...]:
    """Inputs that require gradients, whose values depend on the seed alone; ``spread``: of the offsets, in tokens."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for name, size in operator.inputs(shape).items():
        t = torch.randn(size, generator=generator)
        if name == "offset":
            t *= shape.spread if spread is None else spread
        elif name == "norm_weight":
            t = 1 + 0.1 * t
        elif name == "x":
            t += operator.mean
        elif len(size) == 2:  # products stay about 1
            t *= size[1] ** -0.5
        inputs.append(t.to(device, dtype).requires_grad_())
    return tuple(inputs)


def gradients(function: Function, inputs: tuple[Tensor, ...], seed: int = 1) -> tuple[Tensor, ...]:
    """The result and the gradient of every input, for one upstream gradient that depends on the seed alone."""
    y = function(*inputs)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.device, torch.float16).to(y.dtype)
    return y, *torch.autograd.grad(y, inputs, dy)


def exact_gradients(definition: Function, inputs: tuple[Tensor, ...], seed: int = 1) -> tuple[Tensor, ...]:
    """``gradients`` of the definition in float64."""
    return tuple(t.detach() for t in gradients(definition, tuple(t.detach().double().requires_grad_() for t in inputs), seed))


# ---- the tolerance rule

DRAWS = 4  # of inputs, for the error of plain PyTorch: one draw of a small tensor says little,
LARGE = 2**20  # and of one with so many values enough


def error(actual: Tensor, exact: Tensor) -> float:
    """Error relative to ``exact``, in the L2 norm, over all but its NaNs; NaN where ``actual`` has one more."""
    known = ~exact.isnan()
    actual, exact = actual.detach().to(exact)[known], exact[known]
    if exact.numel() == 0:
        return 0.0
    difference, size = (actual - exact).norm(), exact.norm()
    return (difference / size if size > 0 else difference).item()


def allowed(plain_error: float, dtype: torch.dtype) -> float:
    roundings = 64 if dtype == torch.float64 else 2  # float64 has no finer reference, only itself in another order
    return 2 * plain_error + roundings * torch.finfo(torch.promote_types(dtype, torch.float32)).eps


@functools.cache
def plain_errors(name: str, shape: Shape, dtype: torch.dtype, device: str = "cpu", spread: float | None = None) -> tuple[float, ...]:
    """Distance of the definition in ``dtype`` from float64, for the result and each gradient, at most of several draws."""
    operator, draws = OPERATORS[name], []
    for seed in range(1 if math.prod(shape.tokens) >= LARGE else DRAWS):
        inputs = make(operator, shape, dtype, device, seed, spread)
        exact = exact_gradients(operator.definition, inputs)
        draws.append([error(p, e) for p, e in zip(gradients(operator.definition, inputs), exact, strict=True)])
    return tuple(max(column) for column in zip(*draws, strict=True))


def assert_as_exact(actual: Tensor, plain: Tensor | float, exact: Tensor, what: str = "result") -> None:
    """The tolerance rule. ``plain``: what the definition gives in ``actual``'s dtype, or how far that is."""
    assert actual.shape == exact.shape, f"{what}: shape {list(actual.shape)}, expected {list(exact.shape)}"
    exact = exact.detach().cpu().double()
    assert not (actual.cpu().isnan() & ~exact.isnan()).any(), f"{what}: NaN where the reference has none"
    assert not (exact.isnan() & ~actual.cpu().isnan()).any(), f"{what}: no NaN where the reference has one"
    off = error(actual.cpu(), exact)
    limit = allowed(error(plain, exact) if isinstance(plain, Tensor) else plain, actual.dtype)
    assert off <= limit, f"{what}: relative error {off:.2e}, allowed {limit:.2e}"


def worst(actual: tuple[Tensor, ...], plain: tuple[float, ...], exact: tuple[Tensor, ...]) -> tuple[float, float]:
    """The error of the tensor that keeps the rule the least, and what the rule allows it; a NaN's error if there is one."""
    pairs = [(error(a, e), allowed(p, a.dtype)) for a, p, e in zip(actual, plain, exact, strict=True)]
    return max(pairs, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0] / pair[1])
