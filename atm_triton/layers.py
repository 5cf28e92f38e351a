"""The Active Token Mixer as nn.Modules."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .ops.axial_gather import axial_gather
from .ops.branch_fusion import branch_fusion
from .ops.offset_fc import offset_fc
from .ops.token_mix import token_mix
from .reference import bottleneck

Layer = Callable[[Tensor], Tensor]

# Symbolic tracing (torch.fx) records calls of these, for they look at shapes, which its proxies do not have.
for _function in ("axial_gather", "branch_fusion", "offset_fc", "rearrange", "token_mix"):
    torch.fx.wrap(_function)


def _check_widths(dim: int, share: int, out_dim: int = 1) -> None:
    for name, value in (("dim", dim), ("share", share), ("out_dim", out_dim)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if dim % share:
        raise ValueError(f"share must divide dim, got dim={dim}, share={share}")


@torch.fx.wrap
def _tokens(x: Tensor, dim: int) -> Tensor:
    if x.ndim != 4 or x.shape[3] != dim:
        maps = ": for maps [B, C, H, W] there is ActiveTokenMixer2d" if x.ndim == 4 and x.shape[1] == dim else ""
        raise ValueError(f"x must be [B, H, W, {dim}] (channels last), got {list(x.shape)}{maps}")
    return x


@torch.fx.wrap
def _offsets(offset: Tensor, dim: int, share: int) -> Tensor:
    channels = 2 * dim // share
    if offset.ndim != 4 or offset.shape[3] != channels:
        raise ValueError(
            f"offset must be [B, H, W, 2 * dim // share] = [..., {channels}] for dim={dim}, share={share}, got {list(offset.shape)}"
        )
    return offset


@torch.fx.wrap
def _map(name: str, x: Tensor, channels: int) -> Tensor:
    """``[B, C, H, W] -> [B, H, W, C]`` in memory too, so that no operator has to copy it again."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"{name} must be [B, {channels}, H, W] (NCHW), got {list(x.shape)}")
    return rearrange(x, "b c h w -> b h w c").contiguous()


@torch.fx.wrap
def _mean(x: Tensor) -> Tensor:
    """Mean over the tokens; of no tokens zero, as NaN would reach the weights' gradients."""
    return x.mean((1, 2)) if x.shape[1] * x.shape[2] else x.sum((1, 2))


def is_plain(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Tell whether calling ``layer`` is the forward of ``kind`` and nothing else, so that an operator may read its parameters instead.

    Not so for an adapter in its place, hooks (pruning, FSDP), a ``forward`` of its own (Accelerate) or a weight that is no ordinary tensor
    (torchao). A parametrization is in the parameters that are read.
    """
    return (type(layer) is kind or type_before_parametrizations(layer) is kind) and not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or layer.forward is None  # never: but torch.compile looks again at what was read, and not into __dict__
        or "forward" in layer.__dict__
        or is_traceable_wrapper_subclass(layer._parameters.get("weight"))
    )


def weight_and_bias(layer: Any) -> tuple[Tensor, Tensor]:
    """Return weight and bias of an FC, or of a 1 x 1 convolution as one."""
    weight, bias = layer.weight.flatten(1), layer.bias
    return weight, weight.new_zeros(weight.shape[0]) if bias is None else bias


def fuse(x: Tensor, offset: Tensor, fc_w: Any, fc_h: Any, fc_c: Any, logits: Any, proj: Any) -> Tensor:
    """The mixer of plain layers: their parameters are read."""
    branches = *weight_and_bias(fc_w), *weight_and_bias(fc_h), fc_c.weight
    return token_mix(x, offset, *branches, *weight_and_bias(logits.fc1), *weight_and_bias(logits.fc2), *weight_and_bias(proj))


def compose(x: Tensor, offset: Tensor, fc_w: Layer, fc_h: Layer, fc_c: Layer, logits: Layer, proj: Layer) -> Tensor:
    """The mixer of any layers: they are called."""
    along_w, along_h = offset.chunk(2, -1)
    w = fc_w(axial_gather(x, along_w, "w"))
    h = fc_h(axial_gather(x, along_h, "h"))
    c = fc_c(x)
    return proj(branch_fusion(w, h, c, logits(_mean(w) + _mean(h) + _mean(c))))


class EagerLayer(nn.Module):
    """A layer that refuses TorchScript, which would fail in the depths of the operators."""

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"{type(self).__name__} cannot be TorchScript, which does not know this library's operators: use torch.compile, or "
            "torch.export.export for a graph that runs without its Python code"
        )


class OffsetFC(EagerLayer):
    """Predicts a token's offsets, ``[B, H, W, dim] -> [B, H, W, 2 * dim // share]``: horizontal, then vertical, in tokens.

    Args:
        dim: Channels of the tokens.
        share: Neighbouring channels that share one offset; it divides ``dim``.
        eps: Of the LayerNorm before the linear layer.
    """

    def __init__(self, dim: int, share: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        _check_widths(dim, share)
        self.share, self.eps = share, eps
        self.norm_weight = nn.Parameter(torch.ones(dim))
        self.norm_bias = nn.Parameter(torch.zeros(dim))
        self.weight = nn.Parameter(torch.empty(2 * dim // share, dim))
        self.bias = nn.Parameter(torch.zeros(2 * dim // share))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return offset_fc(x, self.norm_weight, self.norm_bias, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, share={self.share}"


class BranchLogits(nn.Module):
    """Logits of the fusion ``[B, 3, C]`` from the tokens' mean over the branches ``[B, C]``, through a bottleneck of C // 4."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = bottleneck(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, 3 * dim)
        for fc in (self.fc1, self.fc2):
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)

    def forward(self, s: Tensor) -> Tensor:
        return rearrange(self.fc2(F.gelu(self.fc1(s))), "b (c k) -> b k c", k=3)


def _are_plain(fc_w: Any, fc_h: Any, fc_c: Any, logits: Any, proj: Any) -> bool:
    """Tell whether ``fuse`` does what ``compose`` would."""
    # All are asked, whatever the first answers, so that torch.compile asks each again.
    fcs = [is_plain(fc) for fc in (fc_w, fc_h, fc_c, proj)]
    if not is_plain(logits, BranchLogits):
        return False
    fcs += [is_plain(logits.fc1), is_plain(logits.fc2)]
    return all(fcs) and fc_c.bias is None


class ActiveTokenMixer(EagerLayer):
    """Active Token Mixer (paper, section 3.2): ``[B, H, W, dim] -> [B, H, W, out_dim]``.

    Args:
        dim: Channels of the tokens.
        share: Neighbouring channels that share one offset; it divides ``dim``.
        out_dim: Channels of the result; ``dim`` if not given.
        own_offset: Whether the mixer has an offset layer of its own. Without one, every call must bring ``offset``.
        proj_drop: Dropout after the projection.

    ``forward(x, offset=None)``: ``offset [B, H, W, 2 * dim // share]`` in tokens, the first half along W, the second along H; without it
    the mixer predicts its own from x.

    ``token_mix`` computes it at once from the layers' parameters, parametrized ones too. Where something took the place of a layer (an
    adapter) or hooks it, every layer is called instead, between ``axial_gather`` and ``branch_fusion``. Register hooks before compiling.
    """

    def __init__(self, dim: int, share: int = 1, *, out_dim: int | None = None, own_offset: bool = True, proj_drop: float = 0.0) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        _check_widths(dim, share, out_dim)
        self.dim, self.share, self.out_dim = dim, share, out_dim
        self.offset = OffsetFC(dim, share) if own_offset else None
        self.fc_w = nn.Linear(dim, out_dim)
        self.fc_h = nn.Linear(dim, out_dim)
        self.fc_c = nn.Linear(dim, out_dim, bias=False)
        self.logits = BranchLogits(out_dim)
        self.proj = nn.Linear(out_dim, out_dim)
        self.proj_drop = nn.Dropout(proj_drop) if proj_drop else nn.Identity()
        for fc in (self.fc_w, self.fc_h, self.fc_c, self.proj):
            nn.init.trunc_normal_(fc.weight, std=0.02)
            if fc.bias is not None:
                nn.init.zeros_(fc.bias)

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        x = _tokens(x, self.dim)
        if offset is None:
            if self.offset is None:
                raise ValueError("this mixer was made with own_offset=False: pass offset [B, H, W, 2 * dim // share]")
            offset = self.offset(x)
        offset = _offsets(offset, self.dim, self.share)
        layers = self.fc_w, self.fc_h, self.fc_c, self.logits, self.proj
        mix = fuse if _are_plain(*layers) else compose
        return self.proj_drop(mix(x, offset, *layers))

    def extra_repr(self) -> str:
        out = "" if self.out_dim == self.dim else f", out_dim={self.out_dim}"
        return f"{self.dim}, share={self.share}{out}"


class ActiveTokenMixer2d(ActiveTokenMixer):
    """``ActiveTokenMixer`` for maps as convolutions take them: ``[B, dim, H, W] -> [B, out_dim, H, W]``, of the same arguments and state.

    ``forward(x, offset=None)``: ``offset [B, 2 * dim // share, H, W]``. What comes out lies in memory channels last.
    """

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        tokens = _map("x", x, self.dim)
        y = super().forward(tokens, None if offset is None else _map("offset", offset, 2 * self.dim // self.share))
        return rearrange(y, "b h w c -> b c h w")
