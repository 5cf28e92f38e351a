"""Optimizer of train/ade20k.py."""

from typing import Any

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from ..common import dense
from .settings import OptimizerSettings


def make_optimizer(settings: OptimizerSettings, model: nn.Module, head: str) -> Optimizer:
    """AdamW, with weight decay as the authors have it for UperNet, and as usual for Semantic FPN."""
    if head != "upernet":
        return dense.make_optimizer(settings, model)

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        """Groups: the authors exempt what has "norm" in its name, so biases, BatchNorms and PEGs decay."""
        decayed: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in model.named_parameters():
            # The norm before offsets is called offset_layer.0 there.
            decayed["norm" not in name or ".offset.norm_" in name].append(parameter)
        return [{"params": decayed[True], "weight_decay": settings.weight_decay}, {"params": decayed[False], "weight_decay": 0.0}]

    return create_optimizer_v2(model, "adamw", lr=settings.lr, param_group_fn=groups)
