"""Which launch configuration for which shape: the user's cache, else the table shipped for this GPU, else the kernel's formula.

A table is ``{"<kernel>/<H>x<W>/C<C>/G<G>/<dtype>": {"BLOCK_...": int, "num_warps": int, ...}}``, one JSON file per GPU. Looking up
never benchmarks, and never guards on H or W: under dynamic shapes the first shape seen decides, as the formula does for all.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

SHIPPED = Path(__file__).parent / "configs"
USER_CACHE = Path(os.path.expanduser("~")) / ".cache" / "atm_triton"  # unlike Path.home(), no error where there is no home


def gpu_slug(device: torch.device) -> str:
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def table_files(device: torch.device) -> list[Path]:
    """Where a table for this GPU is looked for, the one that decides first."""
    name = f"{gpu_slug(device)}.json"
    return [USER_CACHE / name, SHIPPED / name]


@functools.cache
def table(device: torch.device) -> dict[str, dict[str, int]]:
    merged: dict[str, dict[str, int]] = {}
    for file in reversed(table_files(device)):
        if file.is_file():
            try:
                merged |= json.loads(file.read_text())["configs"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file} is not a table of launch configurations ({error}); remove it or tune again") from error
    return merged


def _hint(size: int | torch.SymInt) -> int:
    return cast(int, size.node.hint) if isinstance(size, torch.SymInt) else size


def key(kernel: str, x: Tensor, groups: int) -> str:
    _, H, W, C = x.shape
    return f"{kernel}/{_hint(H)}x{_hint(W)}/C{int(C)}/G{groups}/{str(x.dtype).removeprefix('torch.')}"


def config(kernel: str, x: Tensor, groups: int, formula: dict[str, int]) -> dict[str, int]:
    """The configuration of ``kernel`` for tokens ``x [B, H, W, C]`` with ``groups`` offset channels per axis; ``formula`` always works."""
    if x.device.type != "cuda":
        return formula
    return table(x.device).get(key(kernel, x, groups), formula)
