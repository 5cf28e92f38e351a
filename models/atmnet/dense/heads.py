"""Heads of segmentation networks as mmsegmentation 0.11 has them, with its names of parameters: UPerHead (Xiao et al.), FCNHead, and
FPNHead of Semantic FPN (Kirillov et al.)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor, nn

DROPOUT = 0.1  # of whole channels, before each classifier
GRIDS = (1, 2, 3, 6)  # of pyramid pooling


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class ConvModule(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, channels: int, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class DecodeHead(nn.Module):
    """Base of the heads: a classifier after dropout."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(DROPOUT)
        self.conv_seg = nn.Conv2d(dim, num_classes, kernel_size=1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def classify(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(x))


class Doubling(nn.Module):
    """An NCHW map at twice its size."""

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, [2 * length for length in x.shape[-2:]])


class FPNHead(DecodeHead):
    """Four NCHW maps at strides 4, 8, 16, 32 to logits at stride 4: each map through convolutions and doublings up to stride 4, the sum
    through a classifier."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, dim: int = 128) -> None:
        super().__init__(dim, num_classes)
        self.scale_heads = nn.ModuleList(self._scale_head(channels, dim, doublings) for doublings, channels in enumerate(in_channels))

    @staticmethod
    def _scale_head(channels: int, dim: int, doublings: int) -> nn.Module:
        if not doublings:
            return nn.Sequential(ConvModule(channels, dim))
        return nn.Sequential(*(layer for i in range(doublings) for layer in (ConvModule(dim if i else channels, dim), Doubling())))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        total, *others = (head(x) for head, x in zip(self.scale_heads, maps, strict=True))
        for x in others:
            total = total + resize(x, total.shape[-2:])  # of odd sizes a map is more than half as large as the one before
        return self.classify(total)


class Means(nn.Module):
    """Adaptive average pooling of an NCHW map to ``grid x grid``, as products: PyTorch's own is compiled again for every size."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return einsum(x, self._parts(x, x.shape[2]), self._parts(x, x.shape[3]), "b c h w, i h, j w -> b c i j")

    def _parts(self, x: Tensor, length: int) -> Tensor:
        part, position = torch.arange(self.grid, device=x.device)[:, None], torch.arange(length, device=x.device)
        begin, end = part * length // self.grid, ((part + 1) * length + self.grid - 1) // self.grid
        return ((begin <= position) & (position < end)).to(x.dtype) / (end - begin)


class UPerHead(DecodeHead):
    """Four NCHW maps at strides 4, 8, 16, 32 to logits at stride 4: a feature pyramid under pyramid pooling, its maps put together."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, dim: int = 512) -> None:
        super().__init__(dim, num_classes)
        *finer, coarsest = in_channels
        self.psp_modules: Any = nn.ModuleList(nn.Sequential(Means(grid), ConvModule(coarsest, dim, kernel_size=1)) for grid in GRIDS)
        self.bottleneck = ConvModule(coarsest + len(GRIDS) * dim, dim)
        self.lateral_convs: Any = nn.ModuleList(ConvModule(channels, dim, kernel_size=1) for channels in finer)
        self.fpn_convs: Any = nn.ModuleList(ConvModule(dim, dim) for _ in finer)
        self.fpn_bottleneck = ConvModule(len(in_channels) * dim, dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = maps
        pooled = [resize(module(coarsest), coarsest.shape[-2:]) for module in self.psp_modules]
        pyramid = [lateral(x) for lateral, x in zip(self.lateral_convs, finer, strict=True)]
        pyramid.append(self.bottleneck(torch.cat([coarsest, *pooled], 1)))
        for i in reversed(range(len(finer))):
            pyramid[i] = pyramid[i] + resize(pyramid[i + 1], pyramid[i].shape[-2:])
        pyramid = [*(conv(x) for conv, x in zip(self.fpn_convs, pyramid, strict=False)), pyramid[-1]]
        return self.classify(self.fpn_bottleneck(torch.cat([resize(x, pyramid[0].shape[-2:]) for x in pyramid], 1)))


class FCNHead(DecodeHead):
    """One map to logits of its size."""

    def __init__(self, channels: int, num_classes: int, dim: int = 256) -> None:
        super().__init__(dim, num_classes)
        self.convs = nn.Sequential(ConvModule(channels, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.convs(x))
