"""MACs of a model, counted as the paper counts them."""

from __future__ import annotations

import torch
from torch import nn

from atm_triton.profile import count_macs

LAYER_NORM_MACS = 5  # per element, as fvcore and the paper have it


def macs(model: nn.Module, size: tuple[int, int] = (224, 224)) -> int:
    """MACs of one image ``(H, W)`` through any network of images: those of convolutions, GEMMs and attention, five per element of a
    LayerNorm, none for gathering, fusing and activations. Nothing is computed, and the model stays as it is.
    """
    image = torch.empty(1, getattr(model, "in_chans", 3), *size, device="meta", dtype=next(model.parameters()).dtype)
    return count_macs(model, image, LAYER_NORM_MACS)
