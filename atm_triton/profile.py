"""MACs of a model, counted by PyTorch's FLOP counter without computing anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from .flops import Formula


def count_macs(model: nn.Module, example: Tensor, layer_norm: int = 0) -> int:
    """MACs of ``model(example)``. Nothing is computed, and the model stays as it is.

    Args:
        model: On any device.
        example: Its input; the shape alone counts.
        layer_norm: What a value that a LayerNorm normalises counts, inside ``offset_fc`` too.
    """
    import torchvision  # noqa: F401 (its deform_conv2d is counted)

    counted: dict[Any, Callable[..., int]] = {
        torch.ops.aten.native_layer_norm: lambda x, *_, **__: 2 * layer_norm * math.prod(x),
        torch.ops.torchvision.deform_conv2d: lambda x, weight, *_, out_shape, **__: 2 * math.prod(weight[1:]) * math.prod(out_shape),
    }
    for op, registered in flop_registry.items():  # of our operators the MACs alone
        if isinstance(formula := getattr(registered, "__wrapped__", None), Formula):
            counted[op] = partial(_twice_the_macs, formula, layer_norm)
    state: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():  # each once: functional_call does not put back what it ties in a module of two names
        for name, t in [*module.named_parameters(prefix, recurse=False), *module.named_buffers(prefix, recurse=False)]:
            state[name] = t.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=counted) as counter:
        functional_call(model, state, example.to("meta"), tie_weights=False)
    return counter.get_total_flops() // 2


def _twice_the_macs(formula: Formula, layer_norm: int, *shapes: object, **others: object) -> int:
    return 2 * (formula.macs(*shapes, **others) + layer_norm * formula.normalized(*shapes, **others))
