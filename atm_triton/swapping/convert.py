"""Conversion of a layer to the mixer that takes its place, and the weights with which that begins.

All begin with the second layer of their fusion's logits at zero, so that the three branches weigh a third each, and with offsets near zero,
where all branches read the token itself.

- The published mixer keeps its weights, and its function.
- A convolution's kernel is divided among the branches: its centre is fc_c, and a tap dx columns and dy rows away from it goes to fc_w and
  fc_h as dx to dy. The projection is 3 times the identity, with the convolution's bias. At offsets of zero the mixer answers a constant map
  as the convolution did, away from the borders.
- Of an attention the values are all three branches, and its projection is the mixer's. At offsets of zero every token attends to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ..layers import ActiveTokenMixer, ActiveTokenMixer2d, EagerLayer, is_plain
from ..reference import bottleneck
from .layers import GridMixer, MapBlock, PublishedMixer

# Where timm has it, now and before; what other networks call attention takes other tokens.
VISION_TRANSFORMERS = ("timm.models.vision_transformer", "timm.layers.attention")


class Unsuitable(Exception):
    """Reason why a layer is left as it is."""


class Replacement(NamedTuple):
    old: nn.Module
    new: nn.Module
    note: str


def convert(layer: nn.Module, ancestors: Sequence[nn.Module], share: int, grid: tuple[int, int] | None) -> Replacement:
    """Make what takes the place of ``layer``, or of its block where that is the smallest part with a mixer's input. Nothing changes yet.

    Args:
        layer: What is to be replaced.
        ancestors: The modules around it, the nearest first.
        share: Neighbouring channels that share an offset.
        grid: Rows and columns of a vision transformer's tokens, if they are not those of the model's ``patch_embed``.

    Raises:
        Unsuitable: the layer cannot be a mixer; it says why.
    """
    if isinstance(layer, EagerLayer | MapBlock):
        raise Unsuitable("a mixer of this library already")
    if is_published(layer):
        return _published(layer)
    if isinstance(layer, nn.Conv2d):
        return _convolution(layer, share)
    if hasattr(layer, "relative_position_bias_table") and hasattr(layer, "qkv"):
        if not (ancestors and _is_swin_block(ancestors[0])):
            raise Unsuitable("attention in windows outside a Swin block of timm")
        return _swin_block(ancestors[0], share)
    if _is_swin_block(layer):
        return _swin_block(layer, share)
    if type(layer).__name__ == "Attention" and type(layer).__module__ in VISION_TRANSFORMERS:
        return _attention(layer, ancestors, share, grid)
    raise Unsuitable("neither a published mixer, nor a Conv2d, nor attention as timm's vision transformers and Swins have it")


def is_published(layer: nn.Module) -> bool:
    """Tell whether it is built as the published implementation's mixer."""
    parts = ("atm_c", "atm_h", "atm_w", "fusion", "proj", "proj_drop")
    return all(isinstance(getattr(layer, part, None), nn.Module) for part in parts) and not isinstance(layer, PublishedMixer)


def _published(layer: Any) -> Replacement:
    fusion: Any = layer.fusion
    holders = dict(atm_c=layer.atm_c, atm_h=layer.atm_h, atm_w=layer.atm_w, fc1=getattr(fusion, "fc1", None))
    holders |= dict(fc2=getattr(fusion, "fc2", None), proj=layer.proj)
    shapes = {name: list(weight.shape) for name, m in holders.items() if isinstance(weight := getattr(m, "weight", None), Tensor)}
    C = shapes.get("atm_c", [0])[0]
    hidden = bottleneck(C)
    square, kernel = [C, C], [C, C, 1, 1]
    expected = dict(atm_c=square, atm_h=kernel, atm_w=kernel, fc1=[hidden, C], fc2=[3 * C, hidden], proj=square)
    if shapes != expected:
        raise Unsuitable(f"weights {shapes} where the published mixer has {expected}")
    if {"forward", "_compiled_call_impl"} & set(vars(layer)):
        raise Unsuitable("its forward was replaced or compiled by itself")
    for name in ("atm_h", "atm_w"):
        op = holders[name]
        for setting, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
            if (value := getattr(op, setting, usual)) not in (usual, (usual, usual)):
                raise Unsuitable(f"{name} has {setting} {value}")
        state = [*op.named_parameters(), *op.named_buffers()]
        more = {own.split(".")[0] for own, _ in state} - {"weight", "bias", "parametrizations"}
        if more and is_plain(op, type(op)):
            raise Unsuitable(f"{name} has {', '.join(sorted(more))} beside weight and bias: merge its adapter first")
    return Replacement(layer, PublishedMixer(layer), "the same parameters and function")


def _convolution(conv: nn.Conv2d, share: int) -> Replacement:
    same = tuple(dilation * (k // 2) for dilation, k in zip(conv.dilation, conv.kernel_size, strict=True))
    if type(conv).forward is not nn.Conv2d.forward:
        raise Unsuitable("its class has a forward of its own")
    if conv.kernel_size == (1, 1):
        raise Unsuitable("1 x 1: it mixes no tokens")
    if conv.stride != (1, 1):
        raise Unsuitable(f"stride {conv.stride[0]} x {conv.stride[1]}")
    if any(k % 2 == 0 for k in conv.kernel_size) or conv.padding not in ("same", same):
        raise Unsuitable(f"kernel {conv.kernel_size} with padding {conv.padding} has no centre, or changes the size of the map")
    if conv.padding_mode != "zeros":
        raise Unsuitable(f"padding_mode {conv.padding_mode!r}: a mixer reads zeros outside the map")
    if isinstance(conv.weight, nn.UninitializedParameter):
        raise Unsuitable("its channels are not known before it has been called")
    _check_share(conv.in_channels, share)
    mixer = ActiveTokenMixer2d(conv.in_channels, share, out_dim=conv.out_channels).to(conv.weight).train(conv.training)
    with torch.no_grad():
        rows, columns = (torch.arange(k, device=conv.weight.device).sub(k // 2).abs() for k in conv.kernel_size)
        distance = (rows[:, None] + columns).clamp_min(1)
        parts = [(conv.weight * (steps / distance)).sum((2, 3)) for steps in (columns, rows[:, None])]
        parts.append(conv.weight[:, :, len(rows) // 2, len(columns) // 2])
        _begin(mixer, [torch.block_diag(*part.chunk(conv.groups)) for part in parts])
        mixer.proj.weight.copy_(3 * torch.eye(conv.out_channels))
        if conv.bias is not None:
            mixer.proj.bias.copy_(conv.bias)
    mixer.requires_grad_(conv.weight.requires_grad)
    return Replacement(conv, mixer, _note(conv, "" if conv.groups == 1 else "groups are ignored: every channel reaches every other"))


def _attention(layer: nn.Module, ancestors: Sequence[Any], share: int, grid: tuple[int, int] | None) -> Replacement:
    owner: Any = next((module for module in ancestors if getattr(getattr(module, "patch_embed", None), "grid_size", None)), None)
    if grid is None and owner is None:
        raise Unsuitable("its tokens' grid is not known: give grid=(height, width)")
    rows, columns = grid or owner.patch_embed.grid_size
    prefix = getattr(owner, "num_prefix_tokens", None)
    dim = _check_widths(layer, share)
    mixer = GridMixer(dim, share, (rows, columns), prefix, proj_drop=_dropout(layer))
    return Replacement(layer, _from_values(mixer, layer), _note(layer, f"a grid of {rows} x {columns} tokens"))


def _swin_block(block: Any, share: int) -> Replacement:
    mixer = ActiveTokenMixer(_check_widths(block.attn, share), share, proj_drop=_dropout(block.attn))
    return Replacement(block, MapBlock(block, _from_values(mixer, block.attn)), _note(block, "mixes the whole map, not windows"))


def _is_swin_block(block: Any) -> bool:
    parts = ("norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2", "shift_size")
    return all(hasattr(block, part) for part in parts) and hasattr(block.attn, "relative_position_bias_table")


def _check_share(channels: int, share: int) -> None:
    if channels % share:
        raise Unsuitable(f"share={share} does not divide its {channels} channels")


def _check_widths(attention: Any, share: int) -> int:
    qkv, proj = attention.qkv, attention.proj
    for name, fc in (("qkv", qkv), ("proj", proj)):
        if type_before_parametrizations(fc) is not nn.Linear:
            raise Unsuitable(f"its {name} is a {type(fc).__name__}, whose weight is not all that it computes: merge its adapter first")
    if not qkv.in_features == proj.in_features == proj.out_features == qkv.out_features // 3:
        raise Unsuitable(f"widths differ: qkv {qkv.in_features} to {qkv.out_features}, proj {proj.in_features} to {proj.out_features}")
    _check_share(qkv.in_features, share)
    return qkv.in_features


def _dropout(attention: Any) -> float:
    return getattr(getattr(attention, "proj_drop", None), "p", 0.0)


@torch.no_grad()
def _from_values(mixer: ActiveTokenMixer, attention: Any) -> ActiveTokenMixer:
    qkv, proj = attention.qkv, attention.proj
    mixer.to(qkv.weight).train(attention.training)
    _begin(mixer, [qkv.weight[-mixer.dim :]] * 3)
    mixer.proj.weight.copy_(proj.weight)
    if qkv.bias is not None:
        mixer.proj.bias.copy_(proj.weight @ qkv.bias[-mixer.dim :])
    if proj.bias is not None:
        mixer.proj.bias.add_(proj.bias)
    return mixer.requires_grad_(qkv.weight.requires_grad)


def _begin(mixer: ActiveTokenMixer, branches: Sequence[Tensor]) -> None:
    for fc, weight in zip((mixer.fc_w, mixer.fc_h, mixer.fc_c), branches, strict=True):
        fc.weight.copy_(weight)
    nn.init.zeros_(mixer.logits.fc2.weight)


def _note(layer: nn.Module, *notes: str) -> str:
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return "; ".join(note for note in (*notes, "its hooks rest until unswap" if hooked else "") if note)
