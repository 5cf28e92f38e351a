"""An ATMNet for libraries that take networks apart by their layers' names."""

from __future__ import annotations

from collections import OrderedDict

from einops import rearrange
from torch import Tensor, nn

from ..model import ATMNet
from ..stages import to_channels_last


class ChannelsFirst(nn.Module):
    """A module of channels-last maps, in a network of others: ``[B, C, H, W]`` to ``[B, C', H', W']``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.module(to_channels_last(x)), "b h w c -> b c h w")


def as_layers(model: ATMNet) -> nn.Sequential:
    """The stem and the stages of a model as ``stem``, ``layer1``, ``layer2``, ...: images ``[B, in_chans, H, W]`` to maps of
    ``[B, C, H, W]``, each layer's of the one before, as torchvision's ``IntermediateLayerGetter`` and ``BackboneWithFPN`` run them.

    The maps are those of ``forward_intermediates``, without a norm; the layers are the model's own, with its weights.
    """
    stages = [(f"layer{i}", ChannelsFirst(stage)) for i, stage in enumerate(model.stages, 1)]
    return nn.Sequential(OrderedDict([("stem", model.stem), *stages]))
