"""The published formulation of the mixer, written from its description: the yardstick of the benchmarks.

Offsets are repeated for every channel and interleaved with zeros, and a 1x1 deformable convolution with one offset group per channel
gathers and multiplies, once per axis.
"""

from __future__ import annotations

import copy

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from atm_triton import ActiveTokenMixer


class PublishedMixer(nn.Module):
    """An ``ActiveTokenMixer`` with the same parameters, computed the published way."""

    def __init__(self, mixer: ActiveTokenMixer) -> None:
        super().__init__()
        self.mixer = mixer

    def along(self, x: Tensor, offset: Tensor, fc: nn.Linear, axis: int) -> Tensor:
        pairs = offset.new_zeros(offset.shape[0], 2 * offset.shape[1], *offset.shape[2:])  # (vertical, horizontal) for each channel
        pairs[:, axis::2] += offset
        inputs = rearrange(x, "b h w c -> b c h w"), pairs, rearrange(fc.weight, "o i -> o i 1 1"), fc.bias
        y = deform_conv2d(*(t.float() for t in inputs))  # which has no bfloat16; under autocast torchvision does the same
        return rearrange(y.to(x.dtype), "b c h w -> b h w c")

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        mixer = self.mixer
        offset_w, offset_h = repeat(offset, "b h w (k g) -> k b (g s) h w", k=2, s=mixer.share)
        w = self.along(x, offset_w, mixer.fc_w, 1)
        h = self.along(x, offset_h, mixer.fc_h, 0)
        c = mixer.fc_c(x)
        logits = mixer.logits(rearrange(w + h + c, "b h w c -> b c (h w)").mean(2))
        alpha = rearrange(logits.softmax(1), "b k c -> k b 1 1 c")
        return mixer.proj(w * alpha[0] + h * alpha[1] + c * alpha[2])


def published(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose mixers are computed the published way."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ActiveTokenMixer):
                setattr(module, name, PublishedMixer(child))
    return model


def assert_same(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    """Both compute the same function: a benchmark of two different ones would say nothing."""
    with torch.no_grad():
        a, b = ours.eval()(images).float(), theirs.eval()(images).float()
    error = ((a - b).norm() / b.norm()).item()
    if not error < (1e-4 if images.dtype == torch.float32 else 5e-2):
        raise RuntimeError(f"the two formulations differ by {error:.1e}: nothing is timed")
