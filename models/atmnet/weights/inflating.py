"""Weights of images for a network of videos, which begins with the very function that they have of a still clip."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from atm_triton import ActiveTokenMixer

from ..model import ATMNet
from ..stages import ClipStage
from .fit import load_strict

# The new branch along time gets a share of the identity branch's softmax weight, and a multiple of its FC, which unlike zeros passes
# gradients to the offsets; the identity branch's own FC makes up for it. Of a still clip both branches read the same: their weighted sum
# is what it was, and with this multiple so is their mean.
SHARE = 0.25
TIMES = -SHARE / (1 - 2 * SHARE)


@torch.no_grad()
def inflate(video: ATMNet, image: ATMNet) -> ATMNet:
    """Load the weights of a network of images into one of videos with the same stages, and return that.

    Of a clip that stands still it then makes the logits that the network of images makes of a frame: the fusion's weights and means, and
    the result, are the same. In a moving one, what is averaged over an image is averaged over all frames. Offsets along time are zero. A
    classifier of another size is left as it is.

    Raises:
        ValueError: they do not fit; the message lists the names and shapes, where the blocks are the same.
    """
    if video.time is None or image.time is not None:
        raise ValueError(f"inflate takes a network of videos and one of images, got {_kind(video)} and {_kind(image)}")
    if len(video.stages) != len(image.stages):
        raise ValueError(f"inflate takes networks with the same stages, got {_kind(video)} and {_kind(image)}")
    if not all(isinstance(block.mixer, ActiveTokenMixer) for stage in image.stages for block in stage.blocks):
        raise ValueError("inflate takes the paper's mixers: this network of images was made with others, by offsets=")
    weights = dict(image.state_dict())
    weights["stem.weight"] = repeat(weights["stem.weight"], "o i h w -> o (s i) h w", s=video.tubelet) / video.tubelet
    for i, (stage, still) in enumerate(zip(video.stages, image.stages, strict=True)):
        if isinstance(stage, ClipStage):
            for j, block in enumerate(still.blocks):
                weights |= _along_time(block, f"stages.{i}.blocks.{j}.")
    if video.num_classes != image.num_classes:
        weights = {name: t for name, t in weights.items() if not name.startswith("head.")} | _head(video)
    load_strict(video, weights, f"the weights of {_kind(image)}")
    return video


def _along_time(block: Any, prefix: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if block.offset is not None:
        for name in ("weight", "bias"):
            along = getattr(block.offset, name)
            found[f"{prefix}offset.{name}"] = torch.cat([along, torch.zeros_like(along[: len(along) // 2])])
    mixer, fc2 = block.mixer, block.mixer.logits.fc2
    own = mixer.fc_c.weight
    found |= {
        f"{prefix}mixer.fc_t.weight": TIMES * own,
        f"{prefix}mixer.fc_t.bias": torch.zeros_like(mixer.fc_w.bias),
        f"{prefix}mixer.fc_c.weight": (1 - TIMES) * own,
    }
    # The rows are [channels, branches], in the order w, h, t, c.
    weight, bias = rearrange(fc2.weight, "(c k) f -> k c f", k=3), rearrange(fc2.bias, "(c k) -> k c", k=3)
    found[f"{prefix}mixer.logits.fc2.weight"] = rearrange(torch.stack([*weight, weight[2]]), "k c f -> (c k) f")
    bias = torch.stack([bias[0], bias[1], bias[2] + math.log(SHARE), bias[2] + math.log(1 - SHARE)])
    found[f"{prefix}mixer.logits.fc2.bias"] = rearrange(bias, "k c -> (c k)")
    return found


def _head(video: ATMNet) -> dict[str, Tensor]:
    return {name: t for name, t in video.state_dict().items() if name.startswith("head.")}


def _kind(model: ATMNet) -> str:
    return f"an ATMNet of {'images' if model.time is None else 'videos'} with {[len(stage.blocks) for stage in model.stages]} blocks"
