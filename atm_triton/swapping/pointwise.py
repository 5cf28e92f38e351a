"""A layer of each token alone becomes a mixer that at first computes the same: ``start="identity"``.

Offsets are zero, so that all branches read the token itself. Each has the layer's weight and weighs a third, and the projection is the
identity, with the layer's bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..layers import ActiveTokenMixer
from .convolution import mixer_of_maps
from .replacement import Options, Replacement, Unsuitable, begin, check_share, note


def convert_pointwise(layer: nn.Module, options: Options) -> Replacement:
    if type(layer) is nn.Conv2d:
        if (layer.kernel_size, layer.stride) != ((1, 1), (1, 1)) or layer.padding not in ((0, 0), "same", "valid"):
            raise Unsuitable(f"kernel {layer.kernel_size}, stride {layer.stride}, padding {layer.padding}, and not 1 x 1 of stride 1")
        check_share(layer.in_channels, options.share)
        found = mixer_of_maps(layer, [layer.weight.detach().flatten(1)] * 3, 1.0, options)
    elif type(layer) is nn.Linear:
        check_share(layer.in_features, options.share)
        found = Replacement(layer, _of_linear(layer, options.share), note(layer, "of maps [B, H, W, C]"))
    else:
        raise Unsuitable("neither a 1 x 1 Conv2d nor a Linear")
    offset: Any = found.new.offset
    nn.init.zeros_(offset.weight)
    return found


@torch.no_grad()
def _of_linear(layer: nn.Linear, share: int) -> ActiveTokenMixer:
    mixer = ActiveTokenMixer(layer.in_features, share, out_dim=layer.out_features).to(layer.weight).train(layer.training)
    begin(mixer, [layer.weight] * 3)
    mixer.proj.weight.copy_(torch.eye(layer.out_features))
    if layer.bias is not None:
        mixer.proj.bias.copy_(layer.bias)
    return mixer.requires_grad_(layer.weight.requires_grad)
