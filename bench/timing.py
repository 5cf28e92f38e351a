"""Measurement of how long a step takes, and of its memory."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

Step = Callable[[], object]
CACHE = 256 * 2**20  # bytes: larger than any cache
WARM_UP, TURNS = 3, 5
WITHOUT_GRAPHS = ("default", "max-autotune-no-cudagraphs")  # modes of torch.compile; a CUDA graph keeps its memory from the first run on


class Times(NamedTuple):
    """Milliseconds."""

    p20: float
    p50: float
    p80: float


def clean_slate(device: torch.device) -> None:
    """Forget what was compiled for the last measurement, and what it held."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def quantiles(steps: dict[str, Step], device: torch.device, seconds: float, failed: dict[str, str]) -> dict[str, Times]:
    """The candidates take turns, so that a machine that slows down slows them all, each time in another order, so that none always follows
    the same; before each, the caches are filled with something else, by reading: what is written would have to leave them meanwhile.

    Args:
        seconds: For each of them; at least five turns.
        failed: Gets what fails meanwhile, which ends no other.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    other = torch.ones(CACHE // 4, device=device)
    clock = _gpu_clock if device.type == "cuda" else _cpu_clock
    order, turns, end = random.Random(0), 0, math.inf
    while times and (turns < WARM_UP + TURNS or time.perf_counter() < end):
        if turns == WARM_UP:
            end = time.perf_counter() + seconds * len(times)
        for name in order.sample(list(times), len(times)):
            try:
                other.sum()
                times[name].append(clock(steps[name]))
            except Exception as error:
                failed[name] = what_failed(error)
                del times[name]
        turns += 1
    deciles = {name: statistics.quantiles(t[WARM_UP:], n=10, method="inclusive") for name, t in times.items()}
    return {name: Times(*(cuts[i] for i in (1, 4, 7))) for name, cuts in deciles.items()}


def _cpu_clock(step: Step) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def _gpu_clock(step: Step) -> float:
    """Measure by the GPU's own clock. Filling the caches keeps it busy while the CPU gives out the step's first kernels."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def captured(step: Step, device: torch.device) -> Step | None:
    """Capture ``step`` as a CUDA graph on a GPU, if it can be one: the kernels' time alone; a small operator takes the CPU longer."""
    if device.type != "cuda":
        return None
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
        return None
    return graph.replay


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
    """Note for a table, of a candidate that could not run."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
