"""How long a step takes, and how much memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

Step = Callable[[], object]
CACHE = 256 * 2**20  # bytes: larger than any cache
WARM_UP = 3


class Times(NamedTuple):
    """Milliseconds."""

    p20: float
    p50: float
    p80: float


def quantiles(steps: dict[str, Step], device: torch.device, seconds: float) -> dict[str, Times]:
    """The candidates take turns, so that a machine that slows down slows them all; before each, the caches are filled with something else.

    ``seconds``: for each of them; at least five turns.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    other = torch.empty(CACHE, dtype=torch.uint8, device=device)
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    clock = _gpu_clock if device.type == "cuda" else _cpu_clock
    end = time.perf_counter() + seconds * len(steps)
    turns = 0
    while steps and (turns < 5 or time.perf_counter() < end):
        turns += 1
        for name, step in steps.items():
            other.zero_()
            times[name].append(clock(step))
    return {name: Times(*(statistics.quantiles(t, n=10, method="inclusive")[i] for i in (1, 4, 7))) for name, t in times.items()}


def _cpu_clock(step: Step) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def _gpu_clock(step: Step) -> float:
    """By the GPU's own clock. Filling the caches keeps it busy while the CPU gives out the step's first kernels."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def captured(step: Step, device: torch.device) -> tuple[Step, bool]:
    """On a GPU, ``step`` as a CUDA graph, if it can be one: the kernels' time without the CPU's, which exceeds that of a small operator."""
    if device.type != "cuda":
        return step, False
    try:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # autograd and the libraries set themselves up outside of the graph
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # A backward pass runs in a thread of its own; and a failed capture leaves its own stream as the current one.
        with torch.cuda.stream(torch.cuda.current_stream(device)), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # not every operation can be captured
        torch.cuda.synchronize(device)
        return step, False
    return graph.replay, True


def peak_memory(step: Step, device: torch.device, resident: int) -> float | None:
    """The most memory that ``step`` needs, in MiB: its model's ``resident`` bytes, and what it allocates; without other models' bytes."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before + resident) / 2**20


def what_failed(error: Exception) -> str:
    """For a table, of a candidate that could not run."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
