"""The values of an attention, with which a mixer in its place begins: all three branches, and its projection.

At offsets of zero every token attends to itself. Attention is written in three ways: timm's and torchvision's Swins have ``qkv`` and
``proj``, ``nn.MultiheadAttention`` one packed weight and ``out_proj``, and transformers four layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ..layers import ActiveTokenMixer
from .replacement import Unsuitable, begin, check_share

FOUR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Values(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    proj_weight: Tensor
    proj_bias: Tensor | None

    @property
    def dim(self) -> int:
        return len(self.weight)


def values_of(attention: Any, share: int) -> Values:
    if isinstance(attention, nn.MultiheadAttention):
        if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
            raise Unsuitable("its keys or values have widths or biases of their own")
        bias, out = attention.in_proj_bias, attention.out_proj
        found = Values(attention.in_proj_weight.chunk(3)[2], None if bias is None else bias.chunk(3)[2], out.weight, out.bias)
    elif all(hasattr(attention, name) for name in FOUR_LAYERS):
        v, out = attention.v_proj, attention.o_proj
        _check_plain(v_proj=v, o_proj=out)
        if not v.in_features == v.out_features == out.in_features == out.out_features:
            raise Unsuitable(f"widths differ: v_proj {v.in_features} to {v.out_features}, o_proj {out.in_features} to {out.out_features}")
        found = Values(v.weight, v.bias, out.weight, out.bias)
    else:
        qkv, proj = attention.qkv, attention.proj
        _check_plain(qkv=qkv, proj=proj)
        if not qkv.in_features == proj.in_features == proj.out_features == qkv.out_features // 3:
            raise Unsuitable(f"widths differ: qkv {qkv.in_features} to {qkv.out_features}, proj {proj.in_features} to {proj.out_features}")
        dim = qkv.in_features
        found = Values(qkv.weight[-dim:], None if qkv.bias is None else qkv.bias[-dim:], proj.weight, proj.bias)
    check_share(found.dim, share)
    return found


def _check_plain(**fcs: nn.Module) -> None:
    for name, fc in fcs.items():
        if type_before_parametrizations(fc) is not nn.Linear:
            raise Unsuitable(f"its {name} is a {type(fc).__name__}, whose weight is not all that it computes: merge its adapter first")


def dropout(attention: Any) -> float:
    return getattr(getattr(attention, "proj_drop", None), "p", 0.0)


@torch.no_grad()
def from_values(mixer: ActiveTokenMixer, values: Values, attention: nn.Module) -> ActiveTokenMixer:
    weight, bias, proj_weight, proj_bias = values
    mixer.to(weight).train(attention.training)
    begin(mixer, [weight] * 3)
    mixer.proj.weight.copy_(proj_weight)
    if bias is not None:
        mixer.proj.bias.copy_(proj_weight @ bias)
    if proj_bias is not None:
        mixer.proj.bias.add_(proj_bias)
    return mixer.requires_grad_(next(attention.parameters()).requires_grad)
