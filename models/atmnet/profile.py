"""Multiply-adds of a model, counted as the paper counts them."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

LAYER_NORM_COST = 5  # multiply-adds per element, as fvcore and the paper have it


def _layer_norm_flops(x: torch.Size, *_, **__) -> int:
    return 2 * LAYER_NORM_COST * math.prod(x)


def _offset_fc_flops(x: torch.Size, norm_weight: torch.Size, norm_bias: torch.Size, weight: torch.Size, *_, **__) -> int:
    return 2 * math.prod(x) * weight[0] + _layer_norm_flops(x)


def _token_mix_flops(x: torch.Size, offset: torch.Size, *weights: torch.Size, **__) -> int:
    B, N, C = x
    hidden = weights[5][0]
    return 2 * B * (4 * N * C * C + 4 * C * hidden)


def macs(model: nn.Module, size: tuple[int, int] = (224, 224)) -> int:
    """Multiply-adds of one image ``(H, W)`` through any network of images: one for each of a convolution, matrix product or attention, five
    per element of a LayerNorm, none for gathering, fusing and activations. Nothing is computed, and the model stays as it is.
    """
    operators = torch.ops.atm_triton
    paper = {
        torch.ops.aten.native_layer_norm: _layer_norm_flops,
        operators.offset_fc: _offset_fc_flops,
        operators.axial_gather: lambda *_, **__: 0,
        operators.branch_fusion: lambda *_, **__: 0,
        operators.token_mix: _token_mix_flops,
    }
    state = {name: t.to("meta") for name, t in [*model.named_parameters(), *model.named_buffers()]}
    image = torch.empty(1, getattr(model, "in_chans", 3), *size, device="meta", dtype=next(model.parameters()).dtype)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=paper) as counter:
        functional_call(model, state, image)
    return counter.get_total_flops() // 2
