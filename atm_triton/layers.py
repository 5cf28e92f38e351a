"""The Active Token Mixer as nn.Modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from numbers import Integral
from operator import add
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .axes import AXES
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


# Of tokens and of maps, by how many axes they have.
TOKENS = {1: "[B, W, {}]", 2: "[B, H, W, {}]", 3: "[B, T, H, W, {}]"}
MAPS = {1: "[B, {}, W] (NCW)", 2: "[B, {}, H, W] (NCHW)", 3: "[B, {}, T, H, W] (NCTHW)"}


@torch.fx.wrap
def _tokens(x: Tensor, dim: int, axes: int) -> Tensor:
    if x.ndim != axes + 2 or x.shape[-1] != dim:
        of_maps = x.ndim == axes + 2 and x.shape[1] == dim
        maps = f": for {MAPS[axes].format('C')} there is ActiveTokenMixer{axes}d" if of_maps else ""
        raise ValueError(f"x must be {TOKENS[axes].format(dim)} (channels last), got {list(x.shape)}{maps}")
    return x


@torch.fx.wrap
def _offsets(offset: Tensor, dim: int, share: int, axes: int) -> Tensor:
    channels = axes * dim // share
    if offset.ndim != axes + 2 or offset.shape[-1] != channels:
        expected = TOKENS[axes].format(f"{axes} * dim // share")
        raise ValueError(f"offset must be {expected} = [..., {channels}] for dim={dim}, share={share}, got {list(offset.shape)}")
    return offset


@torch.fx.wrap
def _map(name: str, x: Tensor, channels: int, axes: int) -> Tensor:
    """``[B, C, *axes] -> [B, *axes, C]`` in memory too, so that no operator has to copy it again."""
    if x.ndim != axes + 2 or x.shape[1] != channels:
        raise ValueError(f"{name} must be {MAPS[axes].format(channels)}, got {list(x.shape)}")
    return rearrange(x, "b c ... -> b ... c").contiguous()


@torch.fx.wrap
def _mean(x: Tensor) -> Tensor:
    """Mean over the tokens; of no tokens zero, as NaN would reach the weights' gradients."""
    x = x.flatten(1, -2)
    return x.mean(1) if x.shape[1] else x.sum(1)


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


def fuse(x: Tensor, offset: Tensor, fc_w: Any, fc_h: Any, fc_c: Any, logits: Any, proj: Any, fc_t: Any = None) -> Tensor:
    """The mixer of plain layers: their parameters are read."""
    weight_w, bias_w = weight_and_bias(fc_w)
    weight_h, bias_h = weight_and_bias(fc_h) if fc_h is not None else (None, None)
    weight_t, bias_t = weight_and_bias(fc_t) if fc_t is not None else (None, None)
    narrow, last = (*weight_and_bias(logits.fc1), *weight_and_bias(logits.fc2)), weight_and_bias(proj)
    return token_mix(x, offset, weight_w, bias_w, weight_h, bias_h, fc_c.weight, *narrow, *last, weight_t, bias_t)


def compose(
    x: Tensor, offset: Tensor, fc_w: Layer, fc_h: Layer | None, fc_c: Layer, logits: Layer, proj: Layer, fc_t: Layer | None = None
) -> Tensor:
    """The mixer of any layers: they are called."""
    fcs = [(axis, fc) for axis, fc in zip(AXES, (fc_w, fc_h, fc_t), strict=True) if fc is not None]
    parts = offset.chunk(len(fcs), -1)
    branches = {axis: fc(axial_gather(x, parts[i], axis)) for i, (axis, fc) in enumerate(fcs)}
    c = fc_c(x)
    s = reduce(add, map(_mean, (*branches.values(), c)))
    return proj(branch_fusion(branches["w"], branches.get("h"), c, logits(s), branches.get("t")))


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
        axes: Of the tokens: 1 of sequences ``[B, W, dim]``, 3 of videos and volumes ``[B, T, H, W, dim]``, whose offsets are along w, h, t.
    """

    def __init__(self, dim: int, share: int = 1, eps: float = 1e-5, axes: int = 2) -> None:
        super().__init__()
        _check_widths(dim, share)
        _check_axes(axes)
        self.share, self.eps, self.axes = share, eps, axes
        self.norm_weight = nn.Parameter(torch.ones(dim))
        self.norm_bias = nn.Parameter(torch.zeros(dim))
        self.weight = nn.Parameter(torch.empty(axes * dim // share, dim))
        self.bias = nn.Parameter(torch.zeros(axes * dim // share))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return offset_fc(x, self.norm_weight, self.norm_bias, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, share={self.share}{_axes_repr(self.axes)}"


class BranchLogits(nn.Module):
    """Logits of the fusion ``[B, K, C]`` from the tokens' mean over the K branches ``[B, C]``, through a bottleneck of C // 4."""

    def __init__(self, dim: int, branches: int = 3) -> None:
        super().__init__()
        hidden = bottleneck(dim)
        self.branches = branches
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, branches * dim)
        for fc in (self.fc1, self.fc2):
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)

    def forward(self, s: Tensor) -> Tensor:
        return rearrange(self.fc2(F.gelu(self.fc1(s))), "b (c k) -> b k c", k=self.branches)


def _are_plain(fc_w: Any, fc_h: Any, fc_c: Any, logits: Any, proj: Any, fc_t: Any = None) -> bool:
    """Tell whether ``fuse`` does what ``compose`` would."""
    # All are asked, whatever the first answers, so that torch.compile asks each again.
    fcs = [is_plain(fc) for fc in (fc_w, fc_h, fc_t, fc_c, proj) if fc is not None]
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
        axes: Of the tokens: 2 of images; 1 of sequences ``[B, W, dim]``, of audio or time series; 3 of videos and volumes
            ``[B, T, H, W, dim]``. Every token reads along each.

    ``forward(x, offset=None)``: ``offset [B, H, W, 2 * dim // share]`` in tokens, the first half along W, the second along H (in general
    ``axes`` parts, along w, h, t); without it the mixer predicts its own from x.

    ``token_mix`` computes it at once from the layers' parameters, parametrized ones too. Where something took the place of a layer (an
    adapter) or hooks it, every layer is called instead, between ``axial_gather`` and ``branch_fusion``. Register hooks before compiling.

    Samples of unlike length: all tokens count in the fusion's mean, padding too, so mix those of one length at a time.
    """

    def __init__(
        self, dim: int, share: int = 1, *, out_dim: int | None = None, own_offset: bool = True, proj_drop: float = 0.0, axes: int = 2
    ) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        _check_widths(dim, share, out_dim)
        _check_axes(axes)
        self.dim, self.share, self.out_dim, self.axes = dim, share, out_dim, axes
        self.offset = OffsetFC(dim, share, axes=axes) if own_offset else None
        self.fc_w = nn.Linear(dim, out_dim)
        self.fc_h: Any = nn.Linear(dim, out_dim) if axes > 1 else None
        self.fc_t: Any = nn.Linear(dim, out_dim) if axes > 2 else None
        self.fc_c = nn.Linear(dim, out_dim, bias=False)
        self.logits = BranchLogits(out_dim, axes + 1)
        self.proj = nn.Linear(out_dim, out_dim)
        self.proj_drop = nn.Dropout(proj_drop) if proj_drop else nn.Identity()
        for fc in (self.fc_w, self.fc_h, self.fc_t, self.fc_c, self.proj):
            if fc is not None:
                nn.init.trunc_normal_(fc.weight, std=0.02)
                if fc.bias is not None:
                    nn.init.zeros_(fc.bias)

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        x = _tokens(x, self.dim, self.axes)
        if offset is None:
            if self.offset is None:
                expected = TOKENS[self.axes].format(f"{self.axes} * dim // share")
                raise ValueError(f"this mixer was made with own_offset=False: pass offset {expected}")
            offset = self.offset(x)
        offset = _offsets(offset, self.dim, self.share, self.axes)
        layers = self.fc_w, self.fc_h, self.fc_c, self.logits, self.proj, self.fc_t
        mix = fuse if _are_plain(*layers) else compose
        return self.proj_drop(mix(x, offset, *layers))

    def extra_repr(self) -> str:
        out = "" if self.out_dim == self.dim else f", out_dim={self.out_dim}"
        return f"{self.dim}, share={self.share}{out}{_axes_repr(self.axes)}"


def _check_axes(axes: int) -> None:
    if axes not in TOKENS:
        raise ValueError(f"axes must be 1 (sequences), 2 (images) or 3 (videos, volumes), got {axes!r}")


def _axes_repr(axes: int) -> str:
    return "" if axes == 2 else f", axes={axes}"


class _OfMaps(ActiveTokenMixer):
    """A mixer of channels first. What comes out lies in memory channels last."""

    AXES: ClassVar[int]

    def __init__(self, dim: int, share: int = 1, *, out_dim: int | None = None, own_offset: bool = True, proj_drop: float = 0.0) -> None:
        super().__init__(dim, share, out_dim=out_dim, own_offset=own_offset, proj_drop=proj_drop, axes=self.AXES)

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        tokens = _map("x", x, self.dim, self.axes)
        if offset is not None:
            offset = _map("offset", offset, self.axes * self.dim // self.share, self.axes)
        return rearrange(super().forward(tokens, offset), "b ... c -> b c ...")


class ActiveTokenMixer1d(_OfMaps):
    """``ActiveTokenMixer`` for sequences as convolutions take them: ``[B, dim, W] -> [B, out_dim, W]``, of the same arguments and state.

    ``forward(x, offset=None)``: ``offset [B, dim // share, W]``. What comes out lies in memory channels last.
    """

    AXES = 1


class ActiveTokenMixer2d(_OfMaps):
    """``ActiveTokenMixer`` for maps as convolutions take them: ``[B, dim, H, W] -> [B, out_dim, H, W]``, of the same arguments and state.

    ``forward(x, offset=None)``: ``offset [B, 2 * dim // share, H, W]``. What comes out lies in memory channels last.
    """

    AXES = 2


class ActiveTokenMixer3d(_OfMaps):
    """``ActiveTokenMixer`` for videos and volumes as convolutions take them: ``[B, dim, T, H, W] -> [B, out_dim, T, H, W]``, of the same
    arguments and state.

    ``forward(x, offset=None)``: ``offset [B, 3 * dim // share, T, H, W]``, along w, h, t. What comes out lies in memory channels last.
    """

    AXES = 3
