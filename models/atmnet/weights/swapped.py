"""Models swapped as what holds their weights says."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from atm_triton import Report, swap
from atm_triton.swapping.swap import reports_of

from .reader import PathLike, reason


def told_swap(given: PathLike | Report | None) -> list[dict[str, Any]]:
    """A report, or its file, as a checkpoint tells it; nothing for None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no report of ``swap``.
    """
    if given is None:
        return []
    return [(given if isinstance(given, Report) else Report.load(os.fspath(given))).to_json()]


def swaps_of(model: nn.Module) -> list[dict[str, Any]]:
    """What a checkpoint of a model tells of the swaps that made it what it is."""
    return [report.to_json() for report in reports_of(model)]


def swap_as_told(model: nn.Module, told: Any, source: str) -> None:
    """Swap in a model what its checkpoint tells: a pattern of names, of train/imagenet.py, or the reports of swaps.

    Raises:
        ValueError: with how ``source`` is called, where it tells something else, or something that the model does not have.
    """
    try:
        if isinstance(told, str):
            swap(model, told)
        else:
            for one in told:
                Report.from_json(one).apply(model)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: cannot swap its {type(model).__name__} as told: {reason(error)}") from error
