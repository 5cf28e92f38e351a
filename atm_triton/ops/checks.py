"""Wrong input is refused here, before a kernel runs, with the shapes that were given."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad


def show(t: Tensor) -> str:
    return f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')} on {t.device}"


def tensors(op: str, **given: object) -> None:
    """Refuse all but ordinary tensors of a floating-point dtype, on one device, and differentiated in reverse, once, by autograd."""
    for name, t in given.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(t).__module__}.{type(t).__qualname__}")
        if t.layout is not torch.strided:
            raise TypeError(f"{op}: {name} must be a dense tensor, got {show(t)} in layout {t.layout}")
        if not t.is_floating_point() or t.element_size() < 2:
            raise TypeError(f"{op}: {name} must be floating point, of 16 bits or more, got {show(t)}")
    found = [t for t in given.values() if isinstance(t, Tensor)]
    if len({t.device for t in found}) > 1:
        raise ValueError(f"{op}: all tensors must be on one device, got " + ", ".join(f"{n} {show(t)}" for n, t in given.items()))  # type: ignore
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in found):  # it would be zero
        raise NotImplementedError(f"{op}: forward-mode differentiation is not implemented; use reverse mode")
    if not torch.compiler.is_compiling() and any(map(torch._C._functorch.is_gradtrackingtensor, found)):
        raise NotImplementedError(f"{op}: differentiation by torch.func is not implemented; use torch.autograd")


def tokens(op: str, name: str, x: Tensor) -> None:
    if not 3 <= x.ndim <= 5 or x.shape[-1] == 0:
        raise ValueError(
            f"{op}: {name} must be [B, W, C], [B, H, W, C] or [B, T, H, W, C] (channels last), of a channel or more, got {show(x)}"
        )


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
    """Switch autocast off inside an operator, whose arguments are cast already: what it computes in float32 stays so."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)
