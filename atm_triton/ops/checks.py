"""Wrong input is refused here, before a kernel runs, with the shapes that were given."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad


def show(t: Tensor) -> str:
    return f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')} on {t.device}"


def tokens(op: str, name: str, x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f"{op}: {name} must be [B, H, W, C] (channels last), got {show(x)}")


def same_place(op: str, **tensors: Tensor) -> None:
    """All floating point, on one device, and not in forward-mode AD, which would silently give zero tangents."""
    for name, t in tensors.items():
        if not t.is_floating_point():
            raise TypeError(f"{op}: {name} must be floating point, got {show(t)}")
    if len({t.device for t in tensors.values()}) > 1:
        raise ValueError(f"{op}: all tensors must be on one device, got " + ", ".join(f"{n} {show(t)}" for n, t in tensors.items()))
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors.values()):
        raise NotImplementedError(f"{op}: forward-mode differentiation is not implemented; use reverse mode")


def shape(op: str, name: str, t: Tensor, expected: tuple, meaning: str) -> None:
    if t.shape != expected:
        raise ValueError(f"{op}: {name} must be {meaning} = {list(expected)}, got {show(t)}")


def autocast_dtype(t: Tensor) -> torch.dtype:
    """The dtype in which a linear layer would take ``t``: autocast's where it is on."""
    device = t.device.type
    if device == "meta" or t.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return t.dtype
    return torch.get_autocast_dtype(device)


def to_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.to(autocast_dtype(t)) for t in tensors)


def autocast_off(x: Tensor) -> AbstractContextManager:
    """Inside an operator, whose arguments are cast already: what it computes in float32 stays so."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)
