"""MACs of a model, counted by PyTorch's FLOP counter without computing anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from .flops import offset_fc_macs, token_mix_macs


def count_macs(model: nn.Module, example: Tensor, layer_norm: int = 0) -> int:
    """MACs of ``model(example)``. Nothing is computed, and the model stays as it is.

    Args:
        model: On any device.
        example: Its input; the shape alone counts.
        layer_norm: What a value that a LayerNorm normalises counts, inside ``offset_fc`` too.
    """
    import torchvision  # noqa: F401 (its deform_conv2d is counted)

    ours, aten = torch.ops.atm_triton, torch.ops.aten
    counted: dict[Any, Callable[..., int]] = {
        aten.native_layer_norm: lambda x, *_, **__: 2 * layer_norm * math.prod(x),
        ours.offset_fc: lambda x, norm_weight, norm_bias, weight, *_, **__: 2 * (offset_fc_macs(x, weight[0]) + layer_norm * math.prod(x)),
        ours.axial_gather: lambda *_, **__: 0,
        ours.branch_fusion: lambda *_, **__: 0,
        ours.token_mix: lambda x, offset, weight_w, *_, **__: 2 * token_mix_macs(x, weight_w[0]),
        torch.ops.torchvision.deform_conv2d: lambda x, weight, *_, out_shape, **__: 2 * math.prod(weight[1:]) * math.prod(out_shape),
    }
    state: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():  # each once: functional_call does not put back what it ties in a module of two names
        for name, t in [*module.named_parameters(prefix, recurse=False), *module.named_buffers(prefix, recurse=False)]:
            state[name] = t.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=counted) as counter:
        functional_call(model, state, example.to("meta"), tie_weights=False)
    return counter.get_total_flops() // 2
