"""Measure which launch configuration is the fastest, for the shapes that a model meets. Nothing else in the library ever benchmarks."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from . import launch
from ._triton import triton
from .calls import Call, find_calls, fresh_runs
from .launch import Config
from .limits import fits, limits

GAIN = 1.02  # a configuration takes the formula's place if it is at least so many times as fast


class Row(NamedTuple):
    """What was measured for one kernel and shape."""

    key: str  # "<kernel>/<H>x<W>/C<C>/G<G>/<dtype>"
    default: float  # microseconds of the operators that launch the kernel, with its formula
    tuned: float
    config: Config


@dataclass(frozen=True)
class Tuned:
    """What ``tune`` answers."""

    configs: dict[str, Config] = field(default_factory=dict)  # of everything that the model meets
    rows: list[Row] = field(default_factory=list)  # of what was measured
    skipped: int = 0  # kernels and shapes that the user's cache held already
    dropped: int = 0  # candidates that have no room here, fail, or compute something else

    def __str__(self) -> str:
        return f"{len(self.rows)} kernels and shapes tuned, {self.skipped} tuned before; {self.dropped} candidates dropped"

    def table(self) -> Table:
        table = Table()
        for heading in ("kernel", "shape", "dtype", "default", "tuned", "speed-up"):
            table.add_column(heading, justify="left" if heading in ("kernel", "shape", "dtype") else "right", no_wrap=True)
        table.add_column("configuration")
        for row in self.rows:
            kernel, size, channels, groups, dtype = row.key.split("/")
            chosen = " ".join(f"{name.removeprefix('BLOCK_').removeprefix('num_')}={value}" for name, value in row.config.items())
            figures = f"{row.default:.1f} µs", f"{row.tuned:.1f} µs", f"{row.default / row.tuned:.2f}"
            table.add_row(kernel, f"{size} {channels} {groups}", dtype, *figures, chosen)
        return table


def microseconds(run: Callable[[], object]) -> float:
    """The median time on the GPU, with a cold L2 cache; without the CPU's part, which exceeds that of many of these kernels."""
    try:
        graph = torch.cuda.CUDAGraph()
        # The outer one, for a failed capture leaves its own stream as the current one.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
        run = graph.replay
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # not every operation can be captured
        torch.cuda.synchronize()
    return 1000 * triton.testing.do_bench(run, return_mode="median")


def _alike(results: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> bool:
    """To a few roundings in ``dtype``, or of long sums in another order. A NaN is never alike."""
    single = 1e-4 if torch.get_float32_matmul_precision() == "highest" else 4 * 2**-10  # else products round to TF32
    allowed = max(4 * torch.finfo(dtype).eps, single)
    errors = [(a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-30) for a, b in zip(results, expected, strict=True)]
    return all(error.item() <= allowed for error in errors)


class _Tuner:
    """Tries candidates one kernel at a time, the others at their best so far."""

    def __init__(self, calls: list[Call], device: torch.device, backward: bool, known: dict[str, Config]) -> None:
        self.device, self.backward, self.known = device, backward, known
        self.chosen: dict[str, Config] = launch.table(device)  # what every launch sees
        self.limits = limits(device)
        self.candidates: dict[str, list[Config]] = {}
        self.users: dict[str, dict[tuple[Call, int], None]] = {}  # by key, the calls and which of their runs launches the kernel
        self.met: list[str] = []
        self.rows: list[Row] = []
        self.skipped = self.dropped = 0
        for call in calls:
            self.look_up(call)

    def look_up(self, call: Call) -> None:
        for number, (op, arguments) in enumerate(fresh_runs(call, self.device, self.backward)):
            with launch.recorded() as found, torch.no_grad():
                op(*arguments)
            self.candidates |= found
            for key in found:
                self.users.setdefault(key, {})[call, number] = None

    def next(self) -> str | None:
        return next((key for key in self.candidates if key not in self.met), None)

    def settle(self, key: str) -> None:
        """Tune ``key``, unless it is known."""
        self.met.append(key)
        default = self.candidates[key][0]
        before = self.chosen[key] if launch.understood(self.chosen.get(key), default) else default
        if launch.understood(self.known.get(key), default):
            self.chosen[key] = self.known[key]
            self.skipped += 1
        else:
            self.rows.append(self.measure(key))
        if self.chosen[key] != before:  # which may decide what else is launched
            for call, _ in list(self.users[key]):
                self.look_up(call)

    def measure(self, key: str) -> Row:
        candidates, dtype = self.candidates[key], getattr(torch, key.rpartition("/")[2])
        default, *others = candidates
        runs = [fresh_runs(call, self.device, self.backward)[number] for call, number in self.users[key]]
        self.chosen[key] = default
        expected = self.results(runs)
        times = {0: self.time(runs)}
        for number, config in enumerate(others, 1):
            if not fits(config, dtype.itemsize, self.limits):
                self.dropped += 1
                continue
            self.chosen[key] = config
            try:
                if not _alike(self.results(runs), expected, dtype):
                    self.dropped += 1
                    continue
                times[number] = self.time(runs)
            except Exception:  # whatever a compiler, a driver or a full memory may raise
                self.dropped += 1
        fastest = min(times, key=times.__getitem__)
        if times[fastest] * GAIN > times[0]:
            fastest = 0
        self.chosen[key] = candidates[fastest]
        return Row(key, times[0], times[fastest], candidates[fastest])

    def results(self, runs: list[tuple[Any, tuple[Any, ...]]]) -> list[Tensor]:
        with torch.no_grad():
            return [t for op, arguments in runs for t in tree_leaves(op(*arguments))]

    def time(self, runs: list[tuple[Any, tuple[Any, ...]]]) -> float:
        with torch.no_grad():
            return sum(microseconds(lambda op=op, arguments=arguments: op(*arguments)) for op, arguments in runs)  # type: ignore[misc]


def _tensor_of(model: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    tensors = [t for t in (*model.parameters(), *model.buffers(), *tree_leaves(inputs)) if isinstance(t, Tensor)]
    devices = {str(t.device) for t in tensors}
    if len(devices) != 1 or launch.gpu_slug(tensors[0].device) is None:
        where = ", ".join(sorted(devices)) or "no device"
        raise ValueError(f"tune: the kernels run on a GPU, and the model and its inputs are on {where}: move both to one, as by .cuda()")
    return tensors[0]


def _tuned_before(file: Path) -> dict[str, Config]:
    """What this version of Triton has measured. A file that is broken is put aside."""
    try:
        content = launch.read_table(file)
    except ValueError as error:
        aside = file.with_name(f"{file.name}.broken")
        os.replace(file, aside)
        launch.forget_tables()
        warnings.warn(f"{error}: it is now {aside}", stacklevel=3)
        return {}
    return content["configs"] if content.get("triton") == triton.__version__ else {}


def _check_writable(export: Path) -> None:
    """Before the long work."""
    with contextlib.suppress(OSError):
        export.parent.mkdir(parents=True, exist_ok=True)
    if export.is_dir() or not os.access(export.parent, os.W_OK):
        raise ValueError(f"tune: cannot write export={str(export)!r}: give a file in a folder that can be written")


def tune(
    model: nn.Module,
    *example_inputs: Any,
    backward: bool = True,
    force: bool = False,
    export: str | Path | None = None,
    progress: bool = True,
) -> Tuned:
    """Find the fastest launch configurations for the shapes and dtypes that ``model(*example_inputs)`` meets, and keep them.

    Call it with the batch, the resolution and the autocast that the model is used with, and before a compiled model runs, which then takes
    the same configurations. They go to the user's cache, ``~/.cache/atm_triton/<gpu>.json``, and hold at once. The model, its gradients
    and the random numbers to come stay as they are.

    Args:
        model: On a GPU, as its inputs.
        example_inputs: What the model is called with. Their shapes count, not their values.
        backward: Tune the gradients' kernels too.
        force: Measure again what this version of Triton has measured before.
        export: A file that gets the configurations too, such as ``atm_triton/configs/<gpu>.json`` to ship them.
        progress: Show a bar, and a table of what was measured.

    Raises:
        ValueError: the model and its inputs are not on one GPU, or ``export`` cannot be written.
    """
    anchor = _tensor_of(model, example_inputs)
    device = anchor.device
    console = Console(quiet=not progress, width=None if sys.stdout.isatty() else 140)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    cache = launch.table_files(device)[0]
    if export is not None:
        _check_writable(Path(export))
    known = {} if force else _tuned_before(cache)
    before = dict(launch.table(device))
    tuner: _Tuner | None = None
    columns = TextColumn("tuning {task.description}"), BarColumn(24), MofNCompleteColumn()
    try:
        with torch.cuda.device_of(anchor), Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None)
            tuner = _Tuner(find_calls(model, *example_inputs), device, backward, known)
            while key := tuner.next():
                bar.update(task, description=key, completed=len(tuner.met), total=len(tuner.candidates))
                tuner.settle(key)
                if not console.is_terminal and tuner.rows and tuner.rows[-1].key == key:  # a bar is nothing for a log
                    console.print(f"tuned {key}, {len(tuner.met)} of {len(tuner.candidates)}", highlight=False)
    finally:
        if tuner is not None:  # an interrupted tuning keeps what it has
            measured = {row.key: row.config for row in tuner.rows}
            launch.set_table(device, before | measured)
            try:
                launch.write_table(cache, gpu, measured)
            except OSError as error:
                warnings.warn(f"cannot write {cache} ({error}): the configurations hold in this process only", stacklevel=2)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    result = Tuned({key: tuner.chosen[key] for key in tuner.met}, tuner.rows, tuner.skipped, tuner.dropped)
    if result.rows:
        console.print(result.table())
    if export is not None:
        launch.write_table(Path(export), gpu, result.configs)
    return result
