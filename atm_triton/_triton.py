"""Triton where it is installed: the one place that knows whether it is, so that every other file reads the same with or without it."""

from __future__ import annotations

import logging
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
    # torch would log this once per operator that is registered; backend_info() says it when asked.
    for _logger in ("torch._library.triton", "torch.utils.flop_counter"):
        logging.getLogger(_logger).setLevel(logging.ERROR)

    def jit(fn):
        return fn


from torch.utils.flop_counter import register_flop_formula  # noqa: E402 - it looks for Triton, and would log too

__all__ = ["jit", "register_flop_formula", "runs_kernels", "tl", "token_stride", "triton", "why_plain"]

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def why_plain(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a tensor on ``device`` of ``dtype`` takes the plain PyTorch path; None where it runs the Triton kernels."""
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
    """``t [B, H, W, K]`` as evenly spaced rows of K contiguous values, and their spacing: a slice of packed channels is read in place."""
    B, H, W, K = t.shape
    stride = t.stride(2)
    if t.stride(3) == 1 and isinstance(stride, int) and t.stride(1) == W * stride and t.stride(0) == H * W * stride:
        return t, stride
    return t.contiguous(), int(K)
