"""What a launch configuration needs of a GPU, estimated before it is compiled."""

from __future__ import annotations

from itertools import combinations
from math import inf, prod
from typing import NamedTuple

import torch


class Limits(NamedTuple):
    shared: float  # bytes of shared memory of a program
    threads: int  # of a warp
    registers: int = 255  # of 32 bits, of a thread


def limits(device: torch.device) -> Limits:
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or getattr(properties, "shared_memory_per_block", 0)
    return Limits(shared or inf, getattr(properties, "warp_size", 32))


def fits(config: dict[str, int], element_size: int, limits: Limits) -> bool:
    """Whether the tiles look as if they had room; an estimate, to save compiling what Triton would then refuse.

    Two blocks make a tile in registers. Of three, a product has a result in registers, and operands in shared memory for every stage.
    """
    blocks = {name: size for name, size in config.items() if name.startswith("BLOCK_")}
    channels = [blocks.pop(name) for name in ("BLOCK_G", "BLOCK_S") if name in blocks]
    sizes = [*blocks.values(), *([prod(channels)] if channels else [])]
    threads = config.get("num_warps", 4) * limits.threads
    if len(sizes) < 3:
        return prod(sizes) / threads <= limits.registers
    # Which of the three tiles are the operands, only the kernel knows: the smaller ones, in favour of the candidate.
    tiles = sorted(a * b for a, b in combinations(sizes, 2))
    stages = max(1, config.get("num_stages", 3) - 1)
    return tiles[0] / threads <= limits.registers and (tiles[0] + tiles[1]) * element_size * stages <= limits.shared
