"""Plain PyTorch as a rival of token_mix, both compiled: where it is faster, a compiled model takes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import plain
from .._triton import OPS
from ..ops.token_mix.strategy import plain_choice
from . import tables
from .calls import Call, fresh

TOKEN_MIX = OPS.token_mix.default
OPERATOR, PLAIN = dict(PLAIN=0), dict(PLAIN=1)
Step = Callable[[], tuple[Tensor, ...]]


def key(call: Call, training: bool) -> str:
    """Key of the choice for ``call`` in a table; the call is one of TOKEN_MIX."""
    x, offset = call.arguments[:2]
    tokens = torch.empty(*offset.size[:-1], x.size[-1], dtype=x.dtype, device="meta")
    return tables.key(plain_choice(training), tokens, offset.size[-1] // (len(offset.size) - 2))


def compiled(call: Call, device: torch.device, training: bool) -> tuple[Step, Step]:
    """The operator and plain PyTorch, compiled for these shapes, and run once: a forward pass, with ``training`` its gradients too."""
    inputs = fresh(call, device)
    differentiated = [t for t in inputs if t is not None]

    def operator(x: Tensor, offset: Tensor, *weights: Tensor | None) -> Tensor:
        return TOKEN_MIX(x, offset, *weights)[0]

    def rival(x: Tensor, offset: Tensor, *weights: Tensor | None) -> Tensor:
        return plain.token_mix(x.unflatten(1, offset.shape[1:-1]), offset, *weights).flatten(1, -2)

    def step(function: Callable[..., Tensor]) -> Step:
        def run() -> tuple[Tensor, ...]:
            with torch.set_grad_enabled(training):
                y = function(*inputs)
                return (y, *torch.autograd.grad(y, differentiated, dy)) if training else (y,)

        return run

    with torch.no_grad():
        dy = torch.empty_like(operator(*inputs)).normal_(generator=torch.Generator(device).manual_seed(1))
    # Every shape is compiled for itself, of one function: the limit is for programs that do so unknowingly.
    with torch._dynamo.config.patch(recompile_limit=1000, accumulated_recompile_limit=1000):
        steps = step(torch.compile(operator, fullgraph=True, dynamic=False)), step(torch.compile(rival, fullgraph=True, dynamic=False))
        for run in steps:
            run()
    return steps
