"""One operator at one shape: its implementations side by side, if it is right."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import limits
import published
import torch
from limits import Ceilings, Layer, Tokens
from timing import WITHOUT_GRAPHS, captured, clean_slate, peak_memory, quantiles, what_failed
from torch import Tensor

import atm_triton
from atm_triton import reference
from atm_triton.selftest import DRAWS, errors, exact_and_plain, results, worst
from atm_triton.tuning.calls import OFFSET_SPREAD

Function = Callable[..., Tensor]
Row = dict[str, Any]


@dataclass(frozen=True)
class Operator:
    name: str
    function: Function
    definition: Function
    layer: Callable[[Tokens], Layer]
    shapes: Callable[[Tokens], list[tuple[int, ...]]]  # of its inputs
    offset: int | None = None  # which of the inputs is in tokens
    others: dict[str, Function] = field(default_factory=dict)  # more implementations

    def inputs(self, shape: Tokens, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        tensors = [torch.randn(size, generator=generator, device=device) for size in self.shapes(shape)]
        tensors = [t * t.shape[1] ** -0.5 if t.ndim == 2 else t for t in tensors]  # weights keep products about 1
        if self.offset is not None:
            # To tokens nearby, in odd sixteenths: the published formulation adds them to positions in float32, and would be sent
            # where the gradient jumps by a rounding.
            tensors[self.offset] = ((8 * OFFSET_SPREAD * tensors[self.offset]).floor() + 0.5) / 8
        return tuple(t.to(dtype).requires_grad_() for t in tensors)


def _tokens(t: Tokens) -> tuple[int, ...]:
    return t.B, t.H, t.W, t.C


def _mixer_shapes(t: Tokens) -> list[tuple[int, ...]]:
    C, hidden, fc = t.C, max(1, t.C // 4), [(t.C, t.C), (t.C,)]
    return [_tokens(t), (t.B, t.H, t.W, 2 * t.G), *fc, *fc, (C, C), (hidden, C), (hidden,), (3 * C, hidden), (3 * C,), *fc]


def _gather(axis: str) -> Operator:
    return Operator(
        f"axial_gather {axis}",
        functools.partial(atm_triton.axial_gather, axis=axis),
        functools.partial(reference.axial_gather, axis=axis),
        limits.axial_gather,
        lambda t: [_tokens(t), (t.B, t.H, t.W, t.G)],
        offset=1,
    )


OPERATORS = [
    Operator(
        "token_mix",
        atm_triton.token_mix,
        reference.token_mix,
        limits.token_mix,
        _mixer_shapes,
        offset=1,
        others={"published": published.token_mix},
    ),
    Operator(
        "offset_fc",
        atm_triton.offset_fc,
        reference.offset_fc,
        limits.offset_fc,
        lambda t: [_tokens(t), (t.C,), (t.C,), (2 * t.G, t.C), (2 * t.G,)],
    ),
    _gather("w"),
    _gather("h"),
    Operator(
        "branch_fusion",
        atm_triton.branch_fusion,
        reference.branch_fusion,
        limits.branch_fusion,
        lambda t: [_tokens(t)] * 3 + [(t.B, 3, t.C)],
    ),
]


# ---- whether it is right


def wrong(found: Tensor, plain: Tensor) -> str:
    """By the tests' rule, which the error of every tensor has to keep; empty if they do."""
    error, allowed = worst(found, plain)
    return "" if error <= allowed else f"wrong: relative error {error:.1e}, allowed {allowed:.1e}"  # also for a NaN


def check(operator: Operator, candidates: dict[str, Function], inputs: tuple[Tensor, ...], dy: Tensor) -> dict[str, str]:
    """What is wrong with the result or a gradient of each candidate, on the very inputs that are timed.

    Compiled for a CPU, a bias's gradient is summed token by token, whoever wrote it; its roundings then grow as the root of their number.
    """
    one_by_one = torch.finfo(torch.float32).eps / 2 * math.prod(dy.shape[:3]) ** 0.5
    summed = torch.tensor([False, *(t.shape[:3] != dy.shape[:3] for t in inputs)], device=dy.device)
    exact, plain = exact_and_plain(operator.definition, inputs, [dy, *(torch.randn_like(dy) for _ in range(DRAWS - 1))])
    found = {}
    for name, function in candidates.items():
        try:
            compiled = name.endswith("compiled") and dy.device.type == "cpu"
            allowed = torch.where(summed, plain.clamp_min(one_by_one), plain) if compiled else plain
            found[name] = wrong(errors(results(function, inputs, dy), exact), allowed)
        except Exception as error:  # whatever a compiler or a driver may raise
            found[name] = what_failed(error)
    return {name: message for name, message in found.items() if message}


# ---- how fast it is


def measure(
    operator: Operator, shape: Tokens, dtype: torch.dtype, device: torch.device, mode: str, seconds: float, ceilings: Ceilings
) -> list[Row]:
    """A row for each direction and implementation; without times where something is wrong."""
    clean_slate(device)
    compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False, mode=mode)
    candidates = operator.others | {"plain, compiled": compiled(operator.definition)}
    candidates |= {"eager": operator.function, "compiled": compiled(operator.function)}
    inputs = operator.inputs(shape, dtype, device)
    torch.manual_seed(0)
    dy = torch.randn_like(operator.definition(*inputs).detach())
    about = dict(section="operator", name=operator.name, shape=str(shape), dtype=str(dtype).removeprefix("torch."), batch=shape.B)
    broken = check(operator, candidates, inputs, dy)
    if broken.keys() & {"eager", "compiled"}:  # beside what is wrong of ours, nothing is timed
        return [about | dict(what="forward", implementation=name, note=note) for name, note in broken.items()]
    resident = sum(t.nbytes for t in (*inputs, dy))
    rows = []
    for what, backward in (("forward", False), ("forward+backward", True)):

        def run(function: Function, backward: bool = backward) -> object:
            if backward:
                return torch.autograd.grad(function(*inputs), inputs, dy)
            with torch.no_grad():
                return function(*inputs)

        steps, graphs, memory, failed = {}, {}, {}, dict(broken)
        for name in [name for name in candidates if name not in broken]:
            step = functools.partial(run, candidates[name])
            try:
                for _ in range(2):  # the first compiles
                    step()
                if mode in WITHOUT_GRAPHS:
                    memory[name] = peak_memory(step, device, resident)
                graphs[name] = captured(step, device)
                steps[name] = step
            except Exception as error:  # one implementation's trouble must not end the others' measurement
                failed[name] = what_failed(error)
        graphed = all(graphs[name] for name in steps)  # all or none, as only a graph leaves the CPU's part out
        work = limits.total([operator.layer(shape)], dtype.itemsize, backward)
        limit = limits.limit([operator.layer(shape)], dtype.itemsize, backward, ceilings)
        times = quantiles({name: graphs[name] if graphed else steps[name] for name in steps}, device, seconds, failed)
        for name, t in times.items():
            rows.append(
                about
                | dict(what=what, implementation=name, p20_ms=t.p20, p50_ms=t.p50, p80_ms=t.p80, peak_mib=memory.get(name))
                | dict(note="CUDA graph" if graphed else "", gb_per_s=work.bytes / t.p50 / 1e6, tflop_per_s=work.flops / t.p50 / 1e9)
                | dict(limit_ms=1e3 * limit, share_of_limit=1e3 * limit / t.p50)
            )
        rows += [about | dict(what=what, implementation=name, note=note) for name, note in failed.items()]
    return rows
