"""The published implementation's mixer, recognised by its structure."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..layers import is_plain
from ..reference import bottleneck
from .layers import PublishedMixer
from .replacement import Replacement, Unsuitable


def is_published(layer: nn.Module) -> bool:
    """Tell whether it is built as the published implementation's mixer."""
    parts = ("atm_c", "atm_h", "atm_w", "fusion", "proj", "proj_drop")
    return all(isinstance(getattr(layer, part, None), nn.Module) for part in parts) and not isinstance(layer, PublishedMixer)


def convert_published(layer: Any) -> Replacement:
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
