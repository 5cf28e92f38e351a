"""Alternatives to the paper's offsets (its table 8, figure 2), as options of the models: ``timm.create_model("atmnet_xt", offsets=...)``.

- ``"zero"``: every offset is 0, so there are neither offset layers nor PEGs (table 8's baseline).
- ``"planar"``: one sample per channel, displaced along both axes at once, in place of one along each (figure 2's ATMNet-xT_A).
- ``"three"``: three samples per channel along each axis (figure 2's ATMNet-xT_B).

The paper writes figure 2's offsets with an index per channel, and gives very close MACs for xT_A and about 50 % more for xT_B.
``share=(1, 1, 1, 1)`` makes it so: 2 % less and 49 % more than ATMNet-xT. With ATMNet-xT's own ``share`` it is 7 % less and 33 % more.

The mixers here are plain compositions to compare with, not fast ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from atm_triton import ActiveTokenMixer, OffsetFC, axial_gather
from atm_triton.reference import bottleneck

# Symbolic tracing records calls of these, for they look at shapes, which its proxies do not have.
torch.fx.wrap("axial_gather")
torch.fx.wrap("rearrange")

SAMPLES = 3  # per channel and axis, of "three"


@torch.fx.wrap
def planar_gather(x: Tensor, offset: Tensor) -> Tensor:
    """Gather each channel at ``(row + offset_h, column + offset_w)``, by bilinear interpolation, zero outside.

    Args:
        x: Tokens ``[B, H, W, C]``.
        offset: Offsets in tokens ``[B, H, W, 2G]``, G dividing C: the first G along W, the last G along H. Channel c uses the two of group
            ``c // (C // G)``. Infinities point outside and give zero; NaN gives NaN.

    Returns:
        ``[B, H, W, C]`` in x's dtype; positions and weights are computed in float32 (float64 for float64 input).

    Raises:
        ValueError: a shape that does not fit.
    """
    if x.ndim != 4 or offset.ndim != 4 or offset.shape[:3] != x.shape[:3]:
        raise ValueError(f"planar_gather: x [B, H, W, C] needs offset [B, H, W, 2G], got x {list(x.shape)}, offset {list(offset.shape)}")
    _, H, W, C = x.shape
    if offset.shape[3] == 0 or 2 * C % offset.shape[3] or offset.shape[3] % 2:
        raise ValueError(f"planar_gather: offset {list(offset.shape)} must have 2G channels, G dividing the {C} of x {list(x.shape)}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, offset.dtype), torch.float32)
    along_w, along_h = rearrange(offset.to(dtype), "b h w (two g) -> two b (h w) g", two=2)
    token = torch.arange(H * W, device=x.device)
    rows = _neighbours(rearrange(token // W, "n -> n 1") + along_h, H)
    columns = _neighbours(rearrange(token % W, "n -> n 1") + along_w, W)
    tokens = rearrange(x, "b h w (g s) -> b (h w) g s", g=offset.shape[3] // 2)
    y = torch.zeros_like(tokens, dtype=dtype)
    for row, row_weight in rows:
        for column, column_weight in columns:
            index = rearrange(row * W + column, "b n g -> b n g 1").expand_as(tokens)
            y = y + rearrange(row_weight * column_weight, "b n g -> b n g 1") * tokens.gather(1, index)
    return rearrange(y, "b (h w) g s -> b h w (g s)", h=H).to(x.dtype)


def _neighbours(position: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
    """The indices on both sides of a position, each with its weight: 0 outside."""
    position = position.clamp(-2, length + 1)  # how far outside does not matter, and infinities would make NaN
    low = position.detach().floor()
    fraction = position - low
    pairs = ((low, 1 - fraction), (low + 1, fraction))
    return [(index.long().clamp(0, length - 1), weight * ((index >= 0) & (index < length))) for index, weight in pairs]


class ZeroMixer(ActiveTokenMixer):
    """An ActiveTokenMixer whose offsets are all 0: tokens mix through the fusion's mean alone. It takes no offset."""

    def __init__(self, dim: int, share: int, proj_drop: float = 0.0) -> None:
        super().__init__(dim, share, own_offset=False, proj_drop=proj_drop)

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        return super().forward(x, x.new_zeros(x.shape[0], x.shape[1], x.shape[2], 2 * self.dim // self.share))


class BranchMixer(nn.Module):
    """ActiveTokenMixer with any number of gathered branches, ``[B, H, W, dim] -> [B, H, W, dim]``.

    An FC for each gathered branch and one for the token itself, weighed by a softmax over all of them, then a projection.
    """

    def __init__(self, dim: int, share: int, gathered: int, proj_drop: float) -> None:
        super().__init__()
        self.dim, self.share = dim, share
        hidden = bottleneck(dim)
        self.fcs = nn.ModuleList(nn.Linear(dim, dim) for _ in range(gathered))
        self.fc_c = nn.Linear(dim, dim, bias=False)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, (gathered + 1) * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop) if proj_drop else nn.Identity()

    def gather(self, x: Tensor, offset: Tensor) -> list[Tensor]:
        """The gathered tokens ``[B, H, W, dim]`` of each branch."""
        raise NotImplementedError

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        branches = torch.stack([*(fc(y) for fc, y in zip(self.fcs, self.gather(x, offset), strict=True)), self.fc_c(x)])
        s = branches.mean((2, 3)).sum(0)
        logits = rearrange(self.fc2(F.gelu(self.fc1(s))), "b (c k) -> k b 1 1 c", k=len(self.fcs) + 1)
        return self.proj_drop(self.proj((logits.softmax(0) * branches).sum(0)))

    def extra_repr(self) -> str:
        return f"{self.dim}, share={self.share}"


class PlanarMixer(BranchMixer):
    """Two branches: the sample displaced along both axes, and the token itself. ``offset [B, H, W, 2 * dim // share]``."""

    def __init__(self, dim: int, share: int, proj_drop: float = 0.0) -> None:
        super().__init__(dim, share, 1, proj_drop)

    def gather(self, x: Tensor, offset: Tensor) -> list[Tensor]:
        return [planar_gather(x, offset)]


class ThreeMixer(BranchMixer):
    """Seven branches: three samples along W, three along H, and the token itself. ``offset [B, H, W, 6 * dim // share]``, in that order."""

    def __init__(self, dim: int, share: int, proj_drop: float = 0.0) -> None:
        super().__init__(dim, share, 2 * SAMPLES, proj_drop)

    def gather(self, x: Tensor, offset: Tensor) -> list[Tensor]:
        maps = offset.chunk(2 * SAMPLES, -1)
        return [axial_gather(x, maps[i], "w" if i < SAMPLES else "h") for i in range(2 * SAMPLES)]


class ThreeOffsetFC(OffsetFC):
    """Predicts ThreeMixer's offsets, ``[B, H, W, C] -> [B, H, W, 6 * C // share]``."""

    def __init__(self, dim: int, share: int, eps: float) -> None:
        super().__init__(dim, share, eps)
        self.weight = nn.Parameter(torch.empty(SAMPLES * self.weight.shape[0], dim))
        self.bias = nn.Parameter(torch.zeros(SAMPLES * self.bias.shape[0]))
        nn.init.trunc_normal_(self.weight, std=0.02)


MIXERS = {"zero": ZeroMixer, "planar": PlanarMixer, "three": ThreeMixer}
OFFSETS = ("axial", *MIXERS)


def ablate(stages: Any, offsets: str, proj_drop: float) -> None:
    """Exchange the paper's own mixers and offset layers in the stages of a new ATMNet for those of one of ``OFFSETS``.

    Raises:
        ValueError: there are no such offsets.
    """
    if offsets not in MIXERS:
        raise ValueError(f"offsets must be one of {', '.join(map(repr, OFFSETS))}, got {offsets!r}")
    for stage in stages:
        if offsets == "zero":
            stage.peg = None
        for block in stage.blocks:
            dim, share = block.mixer.dim, block.mixer.share
            block.mixer = MIXERS[offsets](dim, share, proj_drop)
            if offsets == "zero":
                block.offset = None
            elif offsets == "three" and block.offset is not None:
                block.offset = ThreeOffsetFC(dim, share, block.offset.eps)
