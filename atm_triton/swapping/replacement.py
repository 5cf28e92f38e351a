"""What takes the place of a layer: how it was asked for, and what all conversions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers import ActiveTokenMixer


class Unsuitable(Exception):
    """Reason why a layer is left as it is."""


class Replacement(NamedTuple):
    old: nn.Module
    new: nn.Module
    note: str


class Options(NamedTuple):
    """How new mixers are made: the arguments of ``swap``."""

    share: int = 1
    grid: tuple[int, int] | None = None
    dense: bool = False
    start: str = "weights"


def check_share(channels: int, share: int) -> None:
    if channels % share:
        raise Unsuitable(f"share={share} does not divide its {channels} channels")


@torch.no_grad()
def begin(mixer: ActiveTokenMixer, branches: Sequence[Tensor]) -> None:
    """Give the branches their weights, and the fusion a third for each."""
    for fc, weight in zip((mixer.fc_w, mixer.fc_h, mixer.fc_c), branches, strict=True):
        fc.weight.copy_(weight)
    last: Any = getattr(mixer.logits, "fc2", mixer.logits)
    nn.init.zeros_(last.weight)


def note(layer: nn.Module, *notes: str) -> str:
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return "; ".join(part for part in (*notes, "its hooks rest until unswap" if hooked else "") if part)
