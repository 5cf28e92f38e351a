"""The path that the operators take here, on what, and why."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch

from ._triton import triton, why_plain
from .tuning import tables


@dataclass(frozen=True)
class BackendInfo:
    """Result of ``backend_info``; its ``str`` is one line for a log."""

    backend: str  # "triton" or "pytorch"
    reason: str
    device: str
    torch: str
    triton: str | None  # its version, None where it is not installed
    configs: str  # where launch configurations come from

    def __str__(self) -> str:
        return f"{self.backend} on {self.device}: {self.reason}"


def default_device() -> torch.device:
    """The current GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Name of a GPU; of the CPU, its processor and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{processor}, {device.type}"


def backend_info(device: torch.device | str | int | None = None, dtype: torch.dtype = torch.float32) -> BackendInfo:
    """Tell which path tensors of ``dtype`` on ``device`` take, and why. By default the current GPU if there is one, else the CPU."""
    device = default_device() if device is None else torch.device(device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"backend_info: there is no {device} here; torch {torch.__version__} sees {torch.cuda.device_count()} GPUs")
    why = why_plain(device, dtype)
    configs = "none: no kernels run"
    if why is None:
        configs = "defaults"
        if device.type == "cuda":
            found = [str(file) for file in tables.table_files(device) if os.path.isfile(file)]
            configs = " over ".join([*found, "defaults"])
    return BackendInfo(
        backend="triton" if why is None else "pytorch",
        reason=why or f"Triton kernels for {dtype} on {device.type}",
        device=f"{device} ({device_name(device)})",
        torch=torch.__version__,
        triton=getattr(triton, "__version__", None),
        configs=configs,
    )
