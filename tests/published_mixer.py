"""A stand-in for the published implementation, built as its modules, names and calls are described: on deformable convolutions, with
offsets repeated for every channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class AxialConv(nn.Module):
    """A 1 x 1 deformable convolution along one axis, ``x [B, C, H, W]``, ``offset [B, C, H, W]``."""

    def __init__(self, dim: int, dimension: str, bias: bool = True) -> None:
        super().__init__()
        self.dimension = dimension
        self.weight = nn.Parameter(torch.randn(dim, dim, 1, 1) / dim**0.5)
        self.bias = nn.Parameter(torch.randn(dim) / 10) if bias else None

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        zeros = torch.zeros_like(offset)
        vertical, horizontal = (offset, zeros) if self.dimension == "h" else (zeros, offset)
        pairs = rearrange([vertical, horizontal], "k b c h w -> b (c k) h w")
        return deform_conv2d(x, pairs, self.weight, self.bias)


class ATMLayer(nn.Module):
    def __init__(self, dim: int, proj_drop: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.atm_c = nn.Linear(dim, dim, bias=False)
        self.atm_h = AxialConv(dim, "h", bias)
        self.atm_w = AxialConv(dim, "w", bias)
        self.fusion = Mlp(dim, dim // 4, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        image = rearrange(x, "b h w c -> b c h w")
        along_w, along_h = offset.chunk(2, 1)
        w = rearrange(self.atm_w(image, along_w.contiguous()), "b c h w -> b h w c")
        h = rearrange(self.atm_h(image, along_h.contiguous()), "b c h w -> b h w c")
        c = self.atm_c(x)
        logits = self.fusion((w + h + c).mean((1, 2)))
        alpha = rearrange(logits, "b (c k) -> k b 1 1 c", k=3).softmax(0)
        return self.proj_drop(self.proj(w * alpha[0] + h * alpha[1] + c * alpha[2]))


class Conv(nn.Module):
    """Patch embedding, downsampling or, with ``residual``, position encoding; ``[B, H, W, C]``."""

    def __init__(self, dim_in: int, dim: int, kernel: int, stride: int, padding: int, groups: int = 1) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim_in, dim, kernel, stride, padding, groups=groups)
        self.residual = groups > 1

    def forward(self, x: Tensor) -> Tensor:
        y = rearrange(self.proj(rearrange(x, "b h w c -> b c h w")), "b c h w -> b h w c")
        return x + y if self.residual else y


class ActiveBlock(nn.Module):
    def __init__(self, dim: int, dim_next: int | None, share: int, new_offset: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.atm = ATMLayer(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 2 * dim)
        self.drop_path = DropPath(drop_path)
        self.downsample = Conv(dim, dim_next, 3, 2, 1) if dim_next else nn.Identity()
        self.offset_layer = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim // share)) if new_offset else None
        self.share = share

    def forward(self, x: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        if self.offset_layer is not None:
            offset = repeat(self.offset_layer(x), "b h w k -> b (k s) h w", s=self.share)
        x = x + self.drop_path(self.atm(self.norm1(x), offset))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return self.downsample(x), offset


class ActiveMLP(nn.Module):
    def __init__(self, dims: Sequence[int] = (8, 16), depth: int = 2, share: int = 2, drop_path: float = 0.0, classes: int = 5) -> None:
        super().__init__()
        self.patch_embed = Conv(3, dims[0], 7, 4, 2)
        following = [*dims[1:], None]
        self.blocks = nn.ModuleList(
            nn.ModuleList(ActiveBlock(dim, after if j == depth - 1 else None, share, j % 2 == 0, drop_path) for j in range(depth))
            for dim, after in zip(dims, following, strict=True)
        )
        self.pos_blocks = nn.ModuleList(Conv(dim, dim, 3, 1, 1, groups=dim) for dim in dims)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(rearrange(images, "b c h w -> b h w c"))
        for blocks, position in zip(self.blocks, self.pos_blocks, strict=True):
            offset = x  # the first block makes its own
            for block in blocks:
                if block.offset_layer is not None:
                    x = position(x)
                x, offset = block(x, offset)
        return self.head(self.norm(x).mean((1, 2)))
