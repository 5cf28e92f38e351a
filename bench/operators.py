"""One operator at one shape: its implementations side by side, if it is right."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import published
import torch
import work as least
from timing import WITHOUT_GRAPHS, captured, clean_slate, peak_memory, quantiles, what_failed
from torch import Tensor
from work import Ceilings, Layer, Tokens

from atm_triton import testing
from atm_triton.testing import Function, Shape, exact_gradients, gradients, plain_errors
from atm_triton.tuning.calls import OFFSET_SPREAD

Row = dict[str, Any]
PLAIN, OURS = "plain, compiled", "compiled"
SAME = "the graph of plain PyTorch, timed once"


@dataclass(frozen=True)
class Operator:
    name: str  # in the table of operators
    layer: Callable[[Tokens], Layer]
    others: dict[str, Function] = field(default_factory=dict)  # more implementations

    @property
    def row(self) -> testing.Operator:
        return testing.OPERATORS[self.name]

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Offsets point to tokens nearby, in odd sixteenths: the published formulation adds them to positions in float32, and would be sent
        where the gradient jumps by a rounding."""
        tensors = testing.make(self.row, shape, dtype, device, spread=OFFSET_SPREAD)
        names = self.row.inputs(shape)
        return tuple(_sixteenths(t) if name == "offset" else t for name, t in zip(names, tensors, strict=True))


def _sixteenths(offset: Tensor) -> Tensor:
    return (((8 * offset.detach().float()).floor() + 0.5) / 8).to(offset).requires_grad_()


OPERATORS = [
    Operator("token_mix", least.token_mix, {"published": published.token_mix}),
    *(
        Operator(name, functools.partial(least.operator, row))
        for name, row in testing.OPERATORS.items()
        if name != "token_mix" and row.axes == 2
    ),
]


# ---- whether it is right


def wrong(actual: tuple[Tensor, ...], plain: tuple[float, ...], exact: tuple[Tensor, ...]) -> str:
    """Compare by the tests' rule, which the error of every tensor has to keep; empty if they do."""
    found, limit = testing.worst(actual, plain, exact)
    return "" if found <= limit else f"wrong: relative error {found:.1e}, allowed {limit:.1e}"  # also for a NaN


def check(operator: Operator, shape: Shape, candidates: dict[str, Function], inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """Tell what is wrong with the result or a gradient of each candidate, on the very inputs that are timed.

    Compiled for a CPU, a bias's gradient is summed token by token, whoever wrote it; its roundings then grow as the root of their number.
    """
    dtype, device = inputs[0].dtype, inputs[0].device
    plain = plain_errors(operator.name, shape, dtype, str(device), OFFSET_SPREAD)
    one_by_one = torch.finfo(torch.float32).eps / 2 * math.prod(shape.tokens[:3]) ** 0.5
    summed = [False, *(t.shape[:3] != shape.tokens[:3] for t in inputs)]
    lenient = tuple(max(p, one_by_one) if many else p for p, many in zip(plain, summed, strict=True))
    exact = exact_gradients(operator.row.definition, inputs)
    found = {}
    for name, function in candidates.items():
        try:
            rule = lenient if name.endswith("compiled") and device.type == "cpu" else plain
            found[name] = wrong(gradients(function, inputs), rule, exact)
        except Exception as failure:  # whatever a compiler or a driver may raise
            found[name] = what_failed(failure)
    return {name: message for name, message in found.items() if message}


# ---- how fast it is


def kept(function: Function, inputs: tuple[Tensor, ...]) -> float:
    """MiB that autograd keeps from the forward pass to the backward, besides the inputs."""
    own, found = {t.untyped_storage().data_ptr() for t in inputs}, {}

    def keep(t: Tensor) -> Tensor:
        found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = function(*inputs)  # which stays until all is counted, or memory would come again
    assert y.requires_grad
    return sum(size for at, size in found.items() if at not in own) / 2**20


def is_plain(function: Function, inputs: tuple[Tensor, ...]) -> bool:
    """Tell whether ``function`` is compiled without an operator of ours: then its graph is that of plain PyTorch."""
    found = []

    def look(graph: torch.fx.GraphModule, _: object) -> Callable:
        found.extend(node for node in graph.graph.nodes if str(node.target).startswith("atm_triton."))
        return graph.forward

    torch.compile(function, fullgraph=True, dynamic=False, backend=look)(*inputs)
    return not found


def measure(
    operator: Operator, shape: Tokens, dtype: torch.dtype, device: torch.device, mode: str, seconds: float, ceilings: Ceilings
) -> list[Row]:
    """A row for each direction and implementation; without times where something is wrong."""
    clean_slate(device)
    compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False, mode=mode)
    row = operator.row
    candidates = operator.others | {PLAIN: compiled(row.plain or row.definition)}
    candidates |= {"eager": row.function, OURS: compiled(row.function)}
    inputs = operator.inputs(shape.shape, dtype, device)
    about = dict(section="operator", name=operator.name, shape=str(shape), dtype=str(dtype).removeprefix("torch."), batch=shape.B)
    broken = check(operator, shape.shape, candidates, inputs)
    if broken.keys() & {"eager", OURS}:  # beside what is wrong of ours, nothing is timed
        return [about | dict(what="forward", implementation=name, note=note) for name, note in broken.items()]
    dy = torch.randn_like(row.function(*inputs).detach())
    resident = sum(t.nbytes for t in (*inputs, dy))
    rows = []
    for what, backward in (("forward", False), ("forward+backward", True)):

        def run(function: Function, backward: bool = backward) -> object:
            if backward:
                return torch.autograd.grad(function(*inputs), inputs, dy)
            with torch.no_grad():
                return function(*inputs)

        steps, graphs, memory, saved, failed = {}, {}, {}, {}, dict(broken)
        with torch.set_grad_enabled(backward):
            alike = row.plain is not None and is_plain(row.function, inputs)
        for name in [name for name in candidates if name not in broken]:
            step = functools.partial(run, candidates[name])
            try:
                for _ in range(2):  # the first compiles
                    step()
                if mode in WITHOUT_GRAPHS:
                    memory[name] = peak_memory(step, device, resident)
                if backward:
                    saved[name] = kept(candidates[name], inputs)
                graphs[name] = captured(step, device)
                steps[name] = step
            except Exception as error:  # one implementation's trouble must not end the others' measurement
                failed[name] = what_failed(error)
        graphed = all(graphs[name] for name in steps)  # all or none, as only a graph leaves the CPU's part out
        work = least.total([operator.layer(shape)], dtype.itemsize, backward)
        limit = least.limit([operator.layer(shape)], dtype.itemsize, backward, ceilings)
        if alike and PLAIN in steps:
            steps.pop(OURS, None)  # for it is the same
        times = quantiles({name: graphs[name] if graphed else steps[name] for name in steps}, device, seconds, failed)
        if alike and PLAIN in times:
            times[OURS] = times[PLAIN]
        for name, t in times.items():
            note = SAME if alike and name == OURS else "CUDA graph" if graphed else ""
            rows.append(
                about
                | dict(what=what, implementation=name, p20_ms=t.p20, p50_ms=t.p50, p80_ms=t.p80, peak_mib=memory.get(name))
                | dict(kept_mib=saved.get(name), note=note, gb_per_s=work.bytes / t.p50 / 1e6, tflop_per_s=work.flops / t.p50 / 1e9)
                | dict(limit_ms=1e3 * limit, share_of_limit=1e3 * limit / t.p50)
            )
        rows += [about | dict(what=what, implementation=name, note=note) for name, note in failed.items()]
    return rows
