"""The published formulation of the mixer, written from its description: the yardstick of the benchmarks.

Offsets are repeated for every channel and interleaved with zeros, and a 1x1 deformable convolution with one offset group per channel
gathers and multiplies, once per axis.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from atm_triton import ActiveTokenMixer, OffsetFC, reference
from atm_triton import plain as plain_operators
from atm_triton.algebra import Weights

TokenMix = Callable[..., Tensor]  # takes what atm_triton.token_mix takes


def _along(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, axis: int) -> Tensor:
    pairs = offset.new_zeros(offset.shape[0], 2 * offset.shape[1], *offset.shape[2:])  # (vertical, horizontal) for each channel
    pairs[:, axis::2] += offset
    inputs = rearrange(x, "b h w c -> b c h w"), pairs, rearrange(weight, "o i -> o i 1 1"), bias
    y = deform_conv2d(*(t.float() for t in inputs))  # which has no bfloat16; under autocast torchvision does the same
    return rearrange(y.to(x.dtype), "b c h w -> b h w c")


def token_mix(x: Tensor, offset: Tensor, *weights: Tensor) -> Tensor:
    p = Weights(*weights)
    share = 2 * x.shape[3] // offset.shape[3]
    offset_w, offset_h = repeat(offset, "b h w (k g) -> k b (g s) h w", k=2, s=share)
    w = _along(x, offset_w, p.weight_w, p.bias_w, 1)
    h = _along(x, offset_h, p.weight_h, p.bias_h, 0)
    c = F.linear(x, p.weight_c)
    s = rearrange(w + h + c, "b h w c -> b c (h w)").mean(2)
    logits = F.linear(F.gelu(F.linear(s, p.fc1_weight, p.fc1_bias)), p.fc2_weight, p.fc2_bias)
    alpha = rearrange(rearrange(logits, "b (c k) -> b k c", k=3).softmax(1), "b k c -> k b 1 1 c")
    return F.linear(w * alpha[0] + h * alpha[1] + c * alpha[2], p.proj_weight, p.proj_bias)


def offset_fc(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.linear(F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias, eps), weight, bias)


class _Mixer(nn.Module):
    def __init__(self, mixer: ActiveTokenMixer, function: TokenMix) -> None:
        super().__init__()
        self.mixer, self.function = mixer, function

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        m, fc1, fc2 = self.mixer, self.mixer.logits.fc1, self.mixer.logits.fc2
        weights = Weights(
            *(m.fc_w.weight, m.fc_w.bias, m.fc_h.weight, m.fc_h.bias, m.fc_c.weight),
            *(fc1.weight, fc1.bias, fc2.weight, fc2.bias, m.proj.weight, m.proj.bias),
        )
        return m.proj_drop(self.function(x, offset, *weights))


class _Offset(nn.Module):
    def __init__(self, layer: OffsetFC, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        return self.function(x, layer.norm_weight, layer.norm_bias, layer.weight, layer.bias, layer.eps)


def composed(model: nn.Module, mix: TokenMix, offsets: Callable[..., Tensor]) -> nn.Module:
    """A copy of ``model`` whose mixers are computed by ``mix``, and their offsets by ``offsets``."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ActiveTokenMixer):
                setattr(module, name, _Mixer(child, mix))
            elif isinstance(child, OffsetFC):
                setattr(module, name, _Offset(child, offsets))
    return model


def published(model: nn.Module) -> nn.Module:
    return composed(model, token_mix, offset_fc)


def plain(model: nn.Module) -> nn.Module:
    """Mix by the definitions in plain PyTorch, without any kernel of this library, on a GPU too."""
    return composed(model, plain_operators.token_mix, reference.offset_fc)
