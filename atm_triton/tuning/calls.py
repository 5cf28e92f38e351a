"""Calls of operators that a model makes, and fresh inputs of the same shapes to run them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._triton import NAMESPACE

OFFSET_SPREAD = 3.0  # tokens


class Shape(NamedTuple):
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Call(NamedTuple):
    """One operator with what decides its speed: a Shape for each tensor, and its other arguments."""

    op: Any
    arguments: tuple[Any, ...]


class _Listener(TorchDispatchMode):
    """Tells of every call of an operator of this library; a backward runs under it too, in whichever thread."""

    supports_higher_order_operators = True

    def __init__(self, tell: Callable[[Any, tuple[Any, ...]], object]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func.namespace == NAMESPACE:
            self.tell(func, args)
        return func(*args, **(kwargs or {}))


def find_calls(model: nn.Module, *inputs: Any) -> list[Call]:
    """The distinct calls of one forward pass, in order. The model and the random numbers to come are afterwards as before."""
    calls: dict[Call, None] = {}

    def note(op: Any, args: tuple[Any, ...]) -> None:
        calls[Call(op, tuple(Shape(tuple(a.shape), a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in args))] = None

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gpus = {t.device.index for t in tree_leaves((inputs, list(model.parameters()))) if isinstance(t, Tensor) and t.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=gpus), _Listener(note):  # under which a compiled model runs as it is written
        functional_call(model, buffers, inputs)
    return list(calls)


def fresh(call: Call, device: torch.device) -> tuple[Any, ...]:
    """Arguments of a call anew, of random numbers, for gradients."""
    generator = torch.Generator(device).manual_seed(0)
    arguments: list[Any] = []
    for argument, given in zip(call.op._schema.arguments, call.arguments, strict=True):
        if not isinstance(given, Shape):
            arguments.append(given)
            continue
        if 0 in given.stride:  # an expanded tensor cannot be filled
            t = torch.empty(given.size, dtype=given.dtype, device=device)
        else:
            t = torch.empty_strided(given.size, given.stride, dtype=given.dtype, device=device)
        t.normal_(generator=generator)
        if argument.name == "offset":
            t *= OFFSET_SPREAD
        elif t.ndim == 2:  # a weight [O, C]: products stay about 1
            t *= given.size[1] ** -0.5
        arguments.append(t.requires_grad_())
    return tuple(arguments)


def fresh_runs(call: Call, device: torch.device, backward: bool) -> list[tuple[Any, tuple[Any, ...]]]:
    """The operator and, with ``backward``, that of its gradient: each with tensors to run on, the gradient's from a forward pass."""
    arguments = fresh(call, device)
    runs: list[tuple[Any, tuple[Any, ...]]] = []
    with torch.enable_grad(), _Listener(lambda op, args: runs.append((op, args))):
        outputs = [t for t in tree_leaves(call.op(*arguments)) if isinstance(t, Tensor) and t.requires_grad]
        if backward:
            wanted = [t for t in arguments if isinstance(t, Tensor)]
            gradients = [torch.empty_like(t).normal_(generator=torch.Generator(device).manual_seed(1)) for t in outputs]
            torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)
    return runs
