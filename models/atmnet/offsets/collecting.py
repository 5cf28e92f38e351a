"""The offsets that a model predicts for images."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from atm_triton import OffsetFC

from ..ablations import PlanarMixer
from ..model import ATMNet


def layers(model: nn.Module) -> dict[str, OffsetFC]:
    """The offset layers of an ATMNet, or of the one that a segmenter or detector is built on, named by the blocks that use
    their offsets, counted from 1: ``layer 3_1-6`` makes those of the paper's layers 3_1 to 3_6, the first six blocks of stage 3.

    Raises:
        ValueError: another model, or one whose offsets are all zero or not along one axis each.
    """
    net, found = _network(model), {}
    for i, stage in enumerate(net.stages, 1):
        if any(isinstance(block.mixer, PlanarMixer) for block in stage.blocks):
            raise ValueError("this ATMNet was made with offsets='planar': its samples lie anywhere, not along a row and a column")
        makers = [j for j, block in enumerate(stage.blocks, 1) if block.offset is not None]
        for first, following in pairwise([*makers, len(stage.blocks) + 1]):
            last = f"-{following - 1}" if following - 1 > first else ""
            found[f"layer {i}_{first}{last}"] = stage.blocks[first - 1].offset
    if not found:
        raise ValueError("this ATMNet was made with offsets='zero': it predicts none")
    return found


def _network(model: nn.Module) -> ATMNet:
    net = next((module for module in model.modules() if isinstance(module, ATMNet)), None)
    if net is None:
        raise ValueError(f"offsets are an ATMNet's: {type(model).__name__} has none")
    return net


@torch.no_grad()
def collect(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The offsets ``[B, H, W, 2G]`` in tokens that each of ``layers(model)`` predicts for images ``[B, 3, H, W]``, in float32 on the CPU.

    For clips ``[B, 3, T, H, W]`` they are ``[B, T, H, W, 3G]``, of stages that do not mix along time ``[B * T, H, W, 2G]``.

    Raises:
        ValueError: as ``layers``, and offsets that are infinite or NaN.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.__setitem__(name, output.float().cpu())

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers(model).items()]
    try:
        _network(model).forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    for name, offset in found.items():
        if not offset.isfinite().all():
            raise ValueError(f"{name} predicts offsets that are infinite or NaN: the weights or the images are broken")
    return found


def samples(offset: Tensor, row: int, column: int) -> tuple[Tensor, Tensor]:
    """Count where one token of an image reads: ``counts_w [W]`` at the columns of its row, ``counts_h [H]`` at the rows of its column.

    ``offset [H, W, 2G]``. Samples between tokens count for the nearest; samples outside the image, which read zeros, do not count.
    """
    along_w, along_h = offset[row, column].round().long().chunk(2)
    counts = []
    for position, length in ((column + along_w, offset.shape[1]), (row + along_h, offset.shape[0])):
        inside = position[(position >= 0) & (position < length)]
        counts.append(torch.bincount(inside, minlength=length))
    return counts[0], counts[1]
