"""Modules that ``swap`` puts in place of layers that take something else than a mixer does."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ..layers import ActiveTokenMixer, EagerLayer, compose, fuse, is_plain, weight_and_bias


class Published(NamedTuple):
    """The layer that a ``PublishedMixer`` stands for; a tuple, so that the layer is none of the mixer's modules."""

    layer: nn.Module
    channels: int
    kinds: dict[str, type[nn.Module]]  # of its parts that have the published code's own classes


class PublishedMixer(EagerLayer):
    """The published implementation's mixer on this library's operators: its modules, parameters, names and hooks, and its function.

    ``forward(x [B, H, W, C], offset [B, 2 * C, H, W]) -> [B, H, W, C]``: offsets in tokens for every channel, first along W, then along H.

    As in ``ActiveTokenMixer``, adapters and layers with hooks are called. ``atm_w`` and ``atm_h`` are called by the published code itself.
    """

    # Of the layer that it stands for.
    atm_c: Any
    atm_h: Any
    atm_w: Any
    fusion: Any
    proj: Any
    proj_drop: Any

    def __init__(self, layer: Any) -> None:
        super().__init__()
        vars(self).update(vars(layer))  # the very registries of its modules and hooks, so that what is changed in one is in both
        kinds = {name: type_before_parametrizations(getattr(layer, name)) for name in ("atm_h", "atm_w", "fusion")}
        self._published = Published(layer, len(layer.atm_c.weight), kinds)

    def train(self, mode: bool = True) -> Self:
        self._published.layer.training = mode
        return super().train(mode)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        layer, channels, kinds = self._published
        if x.ndim != 4 or x.shape[3] != channels:
            raise ValueError(f"x must be [B, H, W, {channels}] (channels last), got {list(x.shape)}")
        if offset.shape != (x.shape[0], 2 * channels, *x.shape[1:3]):
            raise ValueError(f"offset must be [B, 2 * C, H, W] for x {list(x.shape)}, got {list(offset.shape)}")
        if not (is_plain(self.atm_w, kinds["atm_w"]) and is_plain(self.atm_h, kinds["atm_h"])):
            return layer.forward(x, offset)  # the published code alone knows what it calls them with
        offset = rearrange(offset, "b c h w -> b h w c")
        if self._is_plain(kinds["fusion"]):
            y = fuse(x, offset, self.atm_w, self.atm_h, self.atm_c, self.fusion, self.proj)
        else:
            w, h = weight_and_bias(self.atm_w), weight_and_bias(self.atm_h)
            y = compose(x, offset, lambda t: F.linear(t, *w), lambda t: F.linear(t, *h), self.atm_c, self._logits, self.proj)
        return self.proj_drop(y)

    def _is_plain(self, fusion: type[nn.Module]) -> bool:
        """Tell whether ``fuse`` does what ``compose`` would."""
        # All are asked, whatever the first answers, so that torch.compile asks each again.
        fcs = [is_plain(self.atm_c), is_plain(self.proj)]
        return is_plain(self.fusion, fusion) and _is_bottleneck(self.fusion) and all(fcs) and self.atm_c.bias is None

    def _logits(self, s: Tensor) -> Tensor:
        return rearrange(self.fusion(s), "b (c k) -> b k c", k=3)

    def extra_repr(self) -> str:
        return str(self._published.channels)


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


class MultiheadGridMixer(GridMixer):
    """``GridMixer`` where ``nn.MultiheadAttention`` attended to itself: called with queries, keys and values, it returns no weights."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:  # type: ignore[override]
        if not (query is key is value):
            raise ValueError("a mixer reads one map: query, key and value must be the same tensor")
        return super().forward(query), None


class PairGridMixer(GridMixer):
    """``GridMixer`` as transformers calls an attention; it returns no weights."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(hidden_states, attention_mask), None


class Block(nn.Module):
    """A Swin block that mixes its whole map, of any size, where it attended in windows. All else is the block's own."""

    SHARED: tuple[str, ...]
    MIXER: str

    def __init__(self, block: Any, mixer: ActiveTokenMixer) -> None:
        super().__init__()
        setattr(self, self.MIXER, mixer)
        for name in self.SHARED:
            setattr(self, name, getattr(block, name))
        self.training = block.training


class MapBlock(Block):
    """Of timm: ``[B, H, W, C]`` to the same."""

    SHARED = ("norm1", "drop_path1", "norm2", "mlp", "drop_path2")
    MIXER = "attn"
    attn: Any
    norm1: Any
    drop_path1: Any
    norm2: Any
    mlp: Any
    drop_path2: Any

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class SequenceBlock(Block):
    """Of transformers: ``[B, H * W, C]`` and ``(H, W)`` to the same and no weights of attention."""

    SHARED = ("layernorm_before", "layernorm_after", "mlp", "dropout", "drop_path")
    MIXER = "attention"
    attention: Any
    layernorm_before: Any
    layernorm_after: Any
    mlp: Any
    dropout: Any
    drop_path: Any

    def forward(self, hidden_states: Tensor, input_dimensions: tuple[int, int], *_: Any, **__: Any) -> tuple[Tensor, None]:
        y = rearrange(self.layernorm_before(hidden_states), "b (h w) c -> b h w c", h=input_dimensions[0])
        y = rearrange(self.attention(y), "b h w c -> b (h w) c")
        x = hidden_states + self.drop_path(self.dropout(y))
        return x + self.dropout(self.mlp(self.layernorm_after(x))), None


def _is_bottleneck(fusion: nn.Module) -> bool:
    """Tell whether the published fusion computes what ``token_mix`` has in its place: fc1, the exact GELU, fc2."""
    parts = [(name, part) for name, part in fusion.named_children() if not _passes(part)]
    kinds = [name if name in ("fc1", "fc2") and is_plain(part) else _is_exact_gelu(part) for name, part in parts]
    return kinds == ["fc1", True, "fc2"] and not (fusion._parameters or fusion._buffers)


def _passes(part: Any) -> bool:
    return is_plain(part, nn.Identity) or (is_plain(part, nn.Dropout) and part.p == 0)


def _is_exact_gelu(part: Any) -> bool:
    return is_plain(part, nn.GELU) and part.approximate == "none"
