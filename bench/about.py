"""Description of what is measured, on what: the columns that every row of a results file has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import torch

import atm_triton
from atm_triton.backend import device_name

MODEL, MODE = "atmnet_t", "default"  # that results are of, unless they say otherwise; mode: of torch.compile


def commit() -> str:
    """The commit that was measured; a plus sign: with changes that are not committed."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:  # no git here
        described = ""
    return described or f"release {atm_triton.__version__}"


def describe(device: torch.device, model: str, mode: str, commit: str) -> dict[str, Any]:
    """Describe what was measured, on what."""
    info = atm_triton.backend_info(device)
    configs = info.configs.replace(os.path.expanduser("~"), "~")
    return dict(device=device_name(device), torch=info.torch, triton=info.triton, commit=commit, configs=configs, model=model, mode=mode)
