"""The window attention of a Swin becomes a mixer of whole maps: timm's, torchvision's and transformers'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..layers import ActiveTokenMixer
from .layers import MapBlock, SequenceBlock
from .replacement import Options, Replacement, Unsuitable, note
from .values import dropout, from_values, values_of

OF_TORCHVISION = "torchvision.models.swin_transformer"
OF_TRANSFORMERS = "transformers.models.swin.modeling_swin"
TOLD = "mixes the whole map, not windows"


def convert_windows(layer: Any, ancestors: Sequence[Any], options: Options) -> Replacement | None:
    """Torchvision's attention takes maps itself; of the others the block is replaced. None where it is no Swin's."""
    if type(layer).__module__ == OF_TORCHVISION:
        attention = layer if hasattr(layer, "qkv") else getattr(layer, "attn", layer)
        return Replacement(attention, _mixer(attention, options), note(attention, TOLD)) if hasattr(attention, "qkv") else None
    is_attention = hasattr(layer, "relative_position_bias_table") and hasattr(layer, "qkv")
    is_attention |= type(layer).__module__ == OF_TRANSFORMERS and hasattr(layer, "v_proj")
    block: Any = next(iter(ancestors), None) if is_attention else layer
    for kind in (MapBlock, SequenceBlock):
        if _is_block(block, kind):
            attention = getattr(block, kind.MIXER)
            return Replacement(block, kind(block, _mixer(attention, options)), note(block, TOLD))
    if is_attention:
        raise Unsuitable("attention in windows outside a Swin block of timm or transformers")
    return None


def _mixer(attention: nn.Module, options: Options) -> ActiveTokenMixer:
    values = values_of(attention, options.share)
    return from_values(ActiveTokenMixer(values.dim, options.share, proj_drop=dropout(attention)), values, attention)


def _is_block(block: Any, kind: type[MapBlock] | type[SequenceBlock]) -> bool:
    if not all(hasattr(block, part) for part in (*kind.SHARED, kind.MIXER, "shift_size")):
        return False
    attention = getattr(block, kind.MIXER)
    return hasattr(attention, "relative_position_bias_table" if kind is MapBlock else "relative_position_bias")
