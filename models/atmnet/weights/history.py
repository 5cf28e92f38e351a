"""The weights that a training kept besides its best, ``--checkpoint-hist``, and the average of some."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reader import PathLike, check_finite, read_safetensors

HISTORY = "history"  # the folder in an output folder
OF_ONE = ("epoch", "measured")  # what is said of one evaluation, and not of an average


class Kept(NamedTuple):
    """Weights of one evaluation."""

    path: Path
    epoch: int
    metric: str
    value: float


def history_name(epoch: int, ema: bool) -> str:
    return f"{HISTORY}/{epoch:04d}{'_ema' * ema}.safetensors"


def _epochs(output: Path, ema: bool) -> dict[int, Path]:
    pattern = re.compile(r"(\d{4,})" + "_ema" * ema + r"\.safetensors")
    found = ((pattern.fullmatch(path.name), path) for path in (output / HISTORY).glob("*"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def prune_history(output: Path, values: Mapping[int, float], count: int, ema: bool) -> None:
    """Remove all weights but those of the last and of the best ``count`` epochs by ``values``."""
    there = _epochs(output, ema)
    best = sorted(there, key=lambda epoch: (values.get(epoch, -math.inf), epoch))[-count:]
    for epoch in there.keys() - {*best, *list(there)[-count:]}:
        there[epoch].unlink()


def find_kept(output: PathLike, ema: bool = False) -> list[Kept]:
    """The weights kept in an output folder, the earliest first.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file cannot be read, or does not say what was measured with it; `average` looks whether those it takes are damaged.
    """
    kept = []
    for epoch, path in _epochs(Path(output), ema).items():
        measured = read_safetensors(path, verify=False).meta.get("measured")
        if not isinstance(measured, dict) or len(measured) != 1:
            raise ValueError(f"{path} does not say what was measured with it: it is damaged, or not a training's")
        kept.append(Kept(path, epoch, *next(iter(measured.items()))))
    if not kept:
        averaged = "averaged weights of a single epoch" if ema else "weights of a single epoch"
        raise FileNotFoundError(f"{Path(output) / HISTORY} has no {averaged}: train with --checkpoint-hist N to keep some")
    return kept


def average(files: list[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The mean of the weights in files of one training, and what is said of all of them. Whole numbers are the last file's.

    Raises:
        ValueError: they cannot be read, are damaged, not finite or of different models.
    """
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    meta: dict[str, Any] = {}
    for file in files:
        found = read_safetensors(file)
        check_finite(file, found.weights)
        shapes = {name: value.shape for name, value in found.weights.items()}
        if sums and shapes != {name: value.shape for name, value in sums.items()}:
            raise ValueError(f"{file} holds another model than {files[0]}")
        dtypes = {name: value.dtype for name, value in found.weights.items()}
        for name, value in found.weights.items():
            sums[name] = sums.get(name, 0) + value.double() if value.is_floating_point() else value
        meta = {name: value for name, value in found.meta.items() if name not in OF_ONE}
    mean = {name: (value / len(files)).to(dtypes[name]) if value.is_floating_point() else value for name, value in sums.items()}
    return mean, meta
