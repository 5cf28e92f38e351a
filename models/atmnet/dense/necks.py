"""Feature pyramids: FPN (Lin et al.), and ATMFPN (paper, section 3.3), which mixes with the Active Token Mixer where FPN convolves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from atm_triton import ActiveTokenMixer, OffsetFC

from ..model import init_weights
from ..stages import LAYER_NORM_EPS, PEG


class FPN(nn.Module):
    """Feature Pyramid Network: NCHW maps from fine to coarse, each half as large as the one before, to maps of the same sizes.

    Args:
        in_channels: Of the maps that come.
        dim: Channels of the maps that go.
    """

    def __init__(self, in_channels: Sequence[int], dim: int = 256) -> None:
        super().__init__()
        self.dim = dim
        self.laterals: Any = nn.ModuleList(self.lateral(channels, dim) for channels in in_channels)
        self.outputs: Any = nn.ModuleList(self.output(dim) for _ in in_channels)

    def lateral(self, channels: int, dim: int) -> nn.Module:
        return _convolution(channels, dim, kernel_size=1)

    def output(self, dim: int) -> nn.Module:
        return _convolution(dim, dim, kernel_size=3)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        if len(maps) != len(self.laterals):
            raise ValueError(f"this {type(self).__name__} was made for {len(self.laterals)} maps, got {len(maps)}")
        merged = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in reversed(range(len(merged) - 1)):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        return [output(x) for output, x in zip(self.outputs, merged, strict=True)]


class ATMFPN(FPN):
    """FPN with an Active Token Mixer in place of each lateral and each output convolution."""

    def lateral(self, channels: int, dim: int) -> nn.Module:
        return Mix(channels, dim)

    def output(self, dim: int) -> nn.Module:
        return Mix(dim, dim)


NECKS: dict[str, type[FPN]] = {"fpn": FPN, "atmfpn": ATMFPN}


class Mix(nn.Module):
    """The Active Token Mixer as a convolution's equal: an NCHW map of ``channels`` to one of ``dim``. It works as in the backbone's blocks,
    after a PEG and a LayerNorm, but every channel has offsets of its own."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.peg = PEG(channels)
        init_weights(self.peg)
        self.offset = OffsetFC(channels, eps=LAYER_NORM_EPS)
        self.norm = nn.LayerNorm(channels, LAYER_NORM_EPS)
        self.mixer = ActiveTokenMixer(channels, out_dim=dim, own_offset=False)
        # The mixer's own initialisation, made for what a block adds to its input, would all but silence a pyramid.
        for fc in (self.mixer.fc_w, self.mixer.fc_h, self.mixer.fc_c, self.mixer.proj):
            _xavier(fc)

    def no_weight_decay(self) -> set[str]:
        return {"peg.weight"}

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        x = self.peg(rearrange(x, "b c h w -> b (h w) c"), height)
        offset = self.offset(rearrange(x, "b (h w) c -> b h w c", h=height))
        y = self.mixer(rearrange(self.norm(x), "b (h w) c -> b h w c", h=height), offset)
        return rearrange(y, "b h w c -> b c h w")


def _convolution(channels: int, dim: int, kernel_size: int) -> nn.Module:
    return _xavier(nn.Conv2d(channels, dim, kernel_size, padding=kernel_size // 2))


def _xavier(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
