"""The mixer in place of a grouped convolution: what its channels read, and how they are weighed, comes from their own group alone.

A channel of a depthwise convolution is a group of itself. The norm before the offsets alone sees all channels. No FC is an ``nn.Linear``,
so that the mixer calls its layers, between ``axial_gather`` and ``branch_fusion``.
"""

from __future__ import annotations

from math import gcd

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..layers import ActiveTokenMixer2d


class GroupedLinear(nn.Module):
    """As many linear layers as groups, each from its channels of ``[B, H, W, C]`` to its own: ``weight [out, C // groups]``."""

    def __init__(self, dim: int, out_dim: int, groups: int, *, bias: bool = True) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_dim, dim // groups))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(rearrange(x, "b h w c -> b c h w"), self.weight[:, :, None, None], self.bias, groups=self.groups)
        return rearrange(y, "b c h w -> b h w c")

    def extra_repr(self) -> str:
        out_dim, width = self.weight.shape
        return f"{width * self.groups}, {out_dim}, groups={self.groups}, bias={self.bias is not None}"


class GroupedOffset(GroupedLinear):
    """``OffsetFC`` in groups. Where channels of several groups share an offset, these make one."""

    def __init__(self, dim: int, share: int, groups: int) -> None:
        super().__init__(dim, 2 * dim // share, gcd(groups, dim // share))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(super().forward(self.norm(x)), "b h w (g k o) -> b h w (k g o)", g=self.groups, k=2)


class GroupedLogits(GroupedLinear):
    """Logits of the fusion ``[B, 3, C]`` from the tokens' mean over the branches ``[B, C]``."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__(dim, 3 * dim, groups)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(super().forward(x[:, None, None]), "b 1 1 (c k) -> b k c", k=3)


class GroupedMixer2d(ActiveTokenMixer2d):
    """``ActiveTokenMixer2d`` in ``groups`` of channels."""

    def __init__(self, dim: int, share: int, groups: int, *, out_dim: int) -> None:
        with torch.device("meta"):  # replaced at once
            super().__init__(dim, share, out_dim=out_dim, own_offset=False)
        self.groups = groups
        self.offset = GroupedOffset(dim, share, groups)  # type: ignore[assignment]
        self.fc_w, self.fc_h = (GroupedLinear(dim, out_dim, groups) for _ in range(2))  # type: ignore[assignment]
        self.fc_c = GroupedLinear(dim, out_dim, groups, bias=False)  # type: ignore[assignment]
        self.logits = GroupedLogits(out_dim, groups)  # type: ignore[assignment]
        self.proj = GroupedLinear(out_dim, out_dim, groups)  # type: ignore[assignment]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"
