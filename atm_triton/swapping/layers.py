"""What ``swap`` puts in place of layers that take something else than a mixer does."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..layers import ActiveTokenMixer, EagerLayer
from ..ops.token_mix import token_mix


class PublishedMixer(EagerLayer):
    """The published implementation's mixer on this library's operator: its modules, parameters, names and hooks, and its function.

    ``forward(x [B, H, W, C], offset [B, 2 * C, H, W]) -> [B, H, W, C]``: offsets in tokens for every channel, first along W, then along H.
    """

    # Of the layer that it stands for.
    atm_c: Any
    atm_h: Any
    atm_w: Any
    fusion: Any
    proj: Any
    proj_drop: Any

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        vars(self).update(vars(layer))  # the very registries of its modules and hooks, so that what is changed in one is in both

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        channels = self.atm_c.in_features
        if x.ndim != 4 or x.shape[3] != channels:
            raise ValueError(f"x must be [B, H, W, {channels}] (channels last), got {list(x.shape)}")
        if offset.shape != (x.shape[0], 2 * channels, *x.shape[1:3]):
            raise ValueError(f"offset must be [B, 2 * C, H, W] for x {list(x.shape)}, got {list(offset.shape)}")
        w, h = (rearrange(layer.weight, "o i 1 1 -> o i") for layer in (self.atm_w, self.atm_h))
        fc1, fc2, proj = self.fusion.fc1, self.fusion.fc2, self.proj
        y = token_mix(
            *(x, rearrange(offset, "b c h w -> b h w c")),
            *(w, _bias(self.atm_w), h, _bias(self.atm_h), self.atm_c.weight),
            *(fc1.weight, _bias(fc1), fc2.weight, _bias(fc2), proj.weight, _bias(proj)),
        )
        return self.proj_drop(y)

    def extra_repr(self) -> str:
        return str(self.atm_c.in_features)


class GridMixer(ActiveTokenMixer):
    """The mixer in place of a vision transformer's attention: ``[B, prefix + H * W, dim]`` to the same, with ``grid = (H, W)``.

    The tokens of the grid are mixed with each other. Those before it, such as a class token, all get the mean of what the grid's get, as if
    they attended to each of them equally; no token of the grid reads them.

    Args:
        dim, share, proj_drop: Of ``ActiveTokenMixer``.
        grid: Rows and columns of the tokens.
        prefix: How many tokens come before the grid; if None, as many as there are.
    """

    def __init__(self, dim: int, share: int, grid: tuple[int, int], prefix: int | None, *, proj_drop: float = 0.0) -> None:
        super().__init__(dim, share, proj_drop=proj_drop)
        self.grid, self.prefix = grid, prefix

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:  # type: ignore[override]
        height, width = self.grid
        if attn_mask is not None or is_causal:
            raise ValueError("a mixer cannot mask: call the model without attn_mask and is_causal")
        if x.ndim != 3 or x.shape[1] < height * width or self.prefix not in (None, x.shape[1] - height * width):
            before = "any" if self.prefix is None else self.prefix
            raise ValueError(
                f"this mixer was made for {before} tokens and a grid of {height} x {width}, [B, N, {self.dim}], got {list(x.shape)}; "
                "for images of another size unswap the model, and swap it with grid=(height, width)"
            )
        prefix = x.shape[1] - height * width
        y = super().forward(rearrange(x[:, prefix:], "b (h w) c -> b h w c", h=height))
        y = rearrange(y, "b h w c -> b (h w) c")
        return torch.cat([y.mean(1, keepdim=True).expand(-1, prefix, -1), y], 1) if prefix else y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, grid={self.grid}, prefix={self.prefix}"


class MapBlock(nn.Module):
    """A Swin block that mixes its whole map ``[B, H, W, C]``, of any size, where it attended in windows. All else is the block's own."""

    SHARED = ("norm1", "drop_path1", "norm2", "mlp", "drop_path2")
    norm1: Any
    drop_path1: Any
    norm2: Any
    mlp: Any
    drop_path2: Any

    def __init__(self, block: Any, mixer: ActiveTokenMixer) -> None:
        super().__init__()
        self.attn = mixer
        for name in self.SHARED:
            setattr(self, name, getattr(block, name))
        self.training = block.training

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


def _bias(layer: Any) -> Tensor:
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
