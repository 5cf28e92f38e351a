"""The attention of a vision transformer becomes a mixer of its grid of patches: timm's, torchvision's and transformers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from .layers import GridMixer, MultiheadGridMixer, PairGridMixer
from .replacement import Options, Replacement, Unsuitable, note
from .values import dropout, from_values, values_of

# Where they are, now and before; what other networks call attention takes other tokens.
OF_TIMM = ("timm.models.vision_transformer", "timm.layers.attention")
OF_TORCHVISION = "torchvision.models.vision_transformer"
OF_TRANSFORMERS = tuple(f"transformers.models.{name}.modeling_{name}" for name in ("vit", "deit", "dinov2", "dinov2_with_registers"))


class Tokens(NamedTuple):
    """What the model around an attention says of its tokens."""

    grid: tuple[int, int] | None = None
    prefix: int | None = None


def convert_attention(layer: nn.Module, ancestors: Sequence[Any], options: Options) -> Replacement | None:
    """None where it is no such attention."""
    kind = next((kind for kind, belongs, _ in KINDS if belongs(layer, ancestors)), None)
    if kind is None:
        return None
    tokens = next((found for _, _, look in KINDS for module in ancestors if (found := look(module))), Tokens())
    grid = options.grid or tokens.grid
    if grid is None:
        raise Unsuitable("its tokens' grid is not known: give grid=(height, width)")
    values = values_of(layer, options.share)
    mixer = kind(values.dim, options.share, grid, tokens.prefix, proj_drop=dropout(layer))
    return Replacement(layer, from_values(mixer, values, layer), note(layer, f"a grid of {grid[0]} x {grid[1]} tokens"))


def _of_timm(layer: nn.Module, ancestors: Sequence[Any]) -> bool:
    return type(layer).__name__ == "Attention" and type(layer).__module__ in OF_TIMM


def _of_torchvision(layer: nn.Module, ancestors: Sequence[Any]) -> bool:
    return isinstance(layer, nn.MultiheadAttention) and bool(ancestors) and type(ancestors[0]).__module__ == OF_TORCHVISION


def _of_transformers(layer: nn.Module, ancestors: Sequence[Any]) -> bool:
    return type(layer).__module__ in OF_TRANSFORMERS and hasattr(layer, "v_proj")


def _timm_tokens(module: Any) -> Tokens | None:
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    return Tokens(grid, getattr(module, "num_prefix_tokens", None)) if grid else None


def _torchvision_tokens(module: Any) -> Tokens | None:
    if type(module).__module__ != OF_TORCHVISION or not hasattr(module, "class_token"):
        return None
    side = module.image_size // module.patch_size
    return Tokens((side, side), 1)


def _transformers_tokens(module: Any) -> Tokens | None:
    embeddings = getattr(module, "embeddings", None)
    patches: Any = getattr(embeddings, "patch_embeddings", None)
    if type(embeddings).__module__ not in OF_TRANSFORMERS or patches is None:
        return None
    (height, width), (rows, columns) = patches.image_size, patches.patch_size
    before = [getattr(embeddings, name, None) for name in ("cls_token", "distillation_token", "register_tokens")]
    return Tokens((height // rows, width // columns), sum(token.shape[1] for token in before if token is not None))


Belongs = Callable[[nn.Module, Sequence[Any]], bool]
KINDS: tuple[tuple[type[GridMixer], Belongs, Callable[[Any], Tokens | None]], ...] = (
    (GridMixer, _of_timm, _timm_tokens),
    (MultiheadGridMixer, _of_torchvision, _torchvision_tokens),
    (PairGridMixer, _of_transformers, _transformers_tokens),
)
