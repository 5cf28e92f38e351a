"""Triton where it is installed: the one place that knows whether it is, so that every other file reads the same with or without it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

triton: Any = None
tl: Any = None
try:
    import triton  # type: ignore[no-redef]
    import triton.language as tl  # type: ignore[no-redef]

    jit = triton.jit
except ImportError:  # the plain PyTorch path needs nothing of it

    def jit(fn):
        return fn


@contextmanager
def _no_complaint(logger: str) -> Iterator[None]:
    """Silence torch's log that Triton is missing, at every registration; ``backend_info()`` says it when asked."""
    level = logging.getLogger(logger).level
    if triton is None:
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(level)


# Of the operators: this package's own name, so that a copy under another has operators of its own.
NAMESPACE = __package__.replace(".", "_")
OPS: Any = getattr(torch.ops, NAMESPACE)

with _no_complaint("torch.utils.flop_counter"):
    from torch.utils.flop_counter import register_flop_formula


def triton_op(name: str) -> Callable[[Callable], Any]:
    """``torch.library.triton_op`` for a function that changes none of its arguments."""

    def register(fn: Callable) -> Any:
        with _no_complaint("torch._library.triton"):
            return torch.library.triton_op(f"{NAMESPACE}::{name}", mutates_args=())(fn)

    return register


def refuse_second_derivative(backward: Any) -> None:
    """Make an operator's ``backward``, an operator too, refuse to be differentiated."""
    name = backward._name.removesuffix("_backward")

    def refuse(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(
            f"{name}: second derivatives are not implemented; differentiate atm_triton.reference.{name}, which has them"
        )

    backward.register_autograd(refuse)


__all__ = [
    "NAMESPACE",
    "OPS",
    "jit",
    "refuse_second_derivative",
    "register_flop_formula",
    "runs_kernels",
    "tl",
    "token_stride",
    "triton",
    "triton_op",
    "why_plain",
]

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def why_plain(device: torch.device, dtype: torch.dtype) -> str | None:
    """Reason why a tensor on ``device`` of ``dtype`` takes the plain PyTorch path; None where it runs the Triton kernels."""
    if triton is None:
        return "Triton is not installed"
    if dtype not in KERNEL_DTYPES:
        return f"the kernels compute in float32, float16 and bfloat16, not {dtype}"
    # Meta tensors take the kernels too, so that a compiled graph can be looked at on any machine.
    if device.type not in ("cuda", "meta") and not triton.knobs.runtime.interpret:
        return f"no Triton kernels on a {device.type} device"
    return None


def runs_kernels(x: Tensor) -> bool:
    return why_plain(x.device, x.dtype) is None


def token_stride(t: Tensor) -> tuple[Tensor, int]:
    """``t [B, *axes, K]`` as evenly spaced rows of K contiguous values, and their spacing: a slice of packed channels is read in place."""
    stride = t.stride(-2)
    if t.stride(-1) == 1 and isinstance(stride, int) and all(t.stride(i) == t.shape[i + 1] * t.stride(i + 1) for i in range(t.ndim - 2)):
        return t, stride
    return t.contiguous(), int(t.shape[-1])
