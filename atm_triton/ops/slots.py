"""Arguments of w, h and t: operators and kernels have all three, of which tokens of fewer axes take the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


def slots(along: Sequence[Tensor], empty: Callable[[], Tensor] | None = None) -> list[Tensor]:
    """Three tensors, of which those that there are not are ``empty()``, or the first again, which a kernel then does not touch."""
    return [*along, *(empty() if empty else along[0] for _ in range(3 - len(along)))]
