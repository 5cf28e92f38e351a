"""Measure which launch configuration is the fastest, for the shapes that a model meets. The only module of the library that benchmarks."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .._triton import triton
from . import rivals, tables
from .calls import Call, find_calls, fresh_runs
from .spills import spills
from .tables import Config

REPEATS = 3  # of the default configuration and the fastest one, in turn
FEW = 4  # registers that ptxas may keep in memory though it has others: more of them would cost a multiprocessor a program


class Row(NamedTuple):
    """Measurements of one kernel and shape."""

    key: str  # "<kernel>/<H>x<W>/C<C>/G<G>/<dtype>"
    default: float  # microseconds of the operators that launch the kernel, with its default configuration
    tuned: float
    config: Config


@dataclass(frozen=True)
class Tuned:
    """Result of ``tune``."""

    configs: dict[str, Config] = field(default_factory=dict)  # of everything that the model meets
    rows: list[Row] = field(default_factory=list)  # of what was measured
    skipped: int = 0  # kernels and shapes that a table of this Triton held already
    dropped: int = 0  # candidates that have no room here, spill, fail, or compute something else

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


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """New memory is NaN, so that what a kernel leaves out does not hold an earlier, right result."""
    before = torch.get_deterministic_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other operators, which would be slower or are not deterministic
        torch.set_deterministic_debug_mode("warn")
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)


def _alike(results: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> bool:
    """Row by row, to a few roundings in ``dtype``, or of long sums in another order. A NaN is never alike."""
    single = 1e-4 if torch.get_float32_matmul_precision() == "highest" else 4 * 2**-10  # else GEMMs round to TF32
    allowed = max(4 * torch.finfo(dtype).eps, single)

    def rows(t: Tensor) -> Tensor:
        return t.float().reshape(-1, t.shape[-1] if t.ndim > 1 else 1)

    for a, b in zip(map(rows, results), map(rows, expected), strict=True):
        size = b.norm(dim=1)
        # In a row that is smaller than usual, larger numbers cancel.
        if not ((a - b).norm(dim=1) <= allowed * size.clamp_min(size.square().mean().sqrt())).all():
            return False
    return True


class _Tuner:
    """Tries candidates one kernel at a time, the others at their best so far."""

    def __init__(self, calls: list[Call], device: torch.device, backward: bool, known: dict[str, Config]) -> None:
        self.device, self.backward, self.known = device, backward, known
        self.chosen: dict[str, Config] = tables.table(device)  # what every launch sees
        self.candidates: dict[str, list[Config]] = {}
        self.users: dict[str, dict[tuple[Call, int], None]] = {}  # by key, the calls and which of their runs launches the kernel
        self.rivals: dict[str, tuple[Call, bool]] = {}  # by key, the call, and whether its gradients are measured with it
        self.met: list[str] = []
        self.rows: list[Row] = []
        self.skipped = self.dropped = 0
        for call in calls:
            self.look_up(call)
            if call.op == rivals.TOKEN_MIX:
                self.rivals |= {rivals.key(call, training): (call, training) for training in (False, True)[: 1 + backward]}
        self.candidates |= {key: [rivals.OPERATOR, rivals.PLAIN] for key in self.rivals}

    def look_up(self, call: Call) -> None:
        for number, (op, arguments) in enumerate(fresh_runs(call, self.device, self.backward)):
            with tables.recorded() as found, torch.no_grad():
                op(*arguments)
            self.candidates |= found
            for key in found:
                self.users.setdefault(key, {})[call, number] = None

    def next(self) -> str | None:
        """Kernels first: their operator meets its rival at its best."""
        return min((key for key in self.candidates if key not in self.met), key=self.rivals.__contains__, default=None)

    def decide(self, key: str) -> Row | None:
        """Tune ``key``, unless it is known."""
        default, row = self.candidates[key][0], None
        before = self.chosen.get(key, default)
        if self.known.get(key) in self.candidates[key]:
            self.chosen[key] = self.known[key]
            self.skipped += 1
        else:
            row = self.compare(key) if key in self.rivals else self.measure(key)
            self.rows += [row] if row else []
        self.met.append(key)
        if self.chosen[key] != before:  # which may decide what else is launched
            for call, _ in list(self.users.get(key, ())):
                self.look_up(call)
        return row

    def decided(self) -> dict[str, Config]:
        return {key: self.chosen[key] for key in self.met}

    def measure(self, key: str) -> Row:
        candidates, dtype = self.candidates[key], getattr(torch, key.rpartition("/")[2])
        runs = [fresh_runs(call, self.device, self.backward)[number] for call, number in self.users[key]]
        self.chosen[key] = candidates[0]
        allowed = max(FEW, spills(lambda: self.results(runs)))
        expected = self.results(runs)
        times = {0: [self.time(runs)]}
        for number, config in enumerate(candidates[1:], 1):
            self.chosen[key] = config
            with contextlib.suppress(Exception):  # whatever a compiler, a driver or a full memory may raise
                if spills(lambda: self.results(runs)) <= allowed and _alike(self.results(runs), expected, dtype):
                    times[number] = [self.time(runs)]
        return self.fastest(key, times, lambda number: self.time(runs))

    def compare(self, key: str) -> Row | None:
        """Measure as ``measure`` does, but whole passes, compiled."""
        call, training = self.rivals[key]
        self.chosen[key] = rivals.OPERATOR
        try:
            steps = rivals.compiled(call, self.device, training)
            operator, plain = (list(step()) for step in steps)
            times = {number: [microseconds(step)] for number, step in enumerate(steps)}
        except Exception:  # as above
            self.dropped += 1
            return None
        if not _alike(plain, operator, operator[0].dtype):
            del times[1]
        return self.fastest(key, times, lambda number: microseconds(steps[number]))

    def fastest(self, key: str, times: dict[int, list[float]], time: Callable[[int], float]) -> Row:
        """Choose, of the candidates of which ``times`` has a first measurement, the one that stays ahead."""
        candidates = self.candidates[key]
        self.dropped += len(candidates) - len(times)
        fastest = min(times, key=times.__getitem__)
        if fastest:  # once more in turn, for the clock of a GPU drifts: it stays if no repetition contradicts, however small the gain
            for number in (0, fastest) * REPEATS:
                self.chosen[key] = candidates[number]
                times[number].append(time(number))
            if max(times[fastest]) >= min(times[0]):
                fastest = 0
        self.chosen[key] = candidates[fastest]
        return Row(key, median(times[0]), median(times[fastest]), candidates[fastest])

    def results(self, runs: list[tuple[Any, tuple[Any, ...]]]) -> list[Tensor]:
        with torch.no_grad(), _poisoned():
            return [t for op, arguments in runs for t in tree_leaves(op(*arguments))]

    def time(self, runs: list[tuple[Any, tuple[Any, ...]]]) -> float:
        with torch.no_grad():
            return sum(microseconds(lambda op=op, arguments=arguments: op(*arguments)) for op, arguments in runs)  # type: ignore[misc]


def _tensor_of(model: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    tensors = [t for t in (*model.parameters(), *model.buffers(), *tree_leaves(inputs)) if isinstance(t, Tensor)]
    devices = {str(t.device) for t in tensors}
    if len(devices) != 1 or tables.gpu_slug(tensors[0].device) is None:
        where = ", ".join(sorted(devices)) or "no device"
        raise ValueError(f"tune: the kernels run on a GPU, and the model and its inputs are on {where}: move both to one, as by .cuda()")
    return tensors[0]


def _measured_before(file: Path) -> dict[str, Config]:
    """Read what this version of Triton has measured. A file that is broken is put aside."""
    try:
        content = tables.read_table(file)
    except ValueError as error:
        aside = file.with_name(f"{file.name}.broken")
        try:
            os.replace(file, aside)
        except OSError:
            raise error from None
        tables.forget_tables()
        warnings.warn(f"{error}: it is now {aside}", stacklevel=3)
        return {}
    return content["configs"] if content.get("triton") == triton.__version__ else {}


def _check_writable(export: Path) -> None:
    """Refuse a file that cannot be written, before the long work."""
    with contextlib.suppress(OSError):
        export.parent.mkdir(parents=True, exist_ok=True)
    if export.is_dir() or not export.parent.is_dir() or not os.access(export.parent, os.W_OK):
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
    the same configurations. Each goes to the user's cache, ``~/.cache/atm_triton/<gpu>.json``, when it is found; all hold afterwards. The
    model, its gradients and the random numbers to come stay as they are.

    Args:
        model: On a GPU, as its inputs.
        example_inputs: What the model is called with. Their shapes count, not their values.
        backward: Tune the gradients' kernels too.
        force: Measure again what this version of Triton has measured before, here or for the shipped table.
        export: A file that gets the configurations too, such as ``atm_triton/tuning/configs/<gpu>.json`` to ship them.
        progress: Show a bar, and a table of what was measured.

    Raises:
        ValueError: the model and its inputs are not on one GPU, ``export`` cannot be written, or a broken table cannot be put aside.
    """
    anchor = _tensor_of(model, example_inputs)
    device = anchor.device
    console = Console(quiet=not progress, width=None if sys.stdout.isatty() else 140)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    files = tables.table_files(device)
    if export is not None:
        _check_writable(Path(export))
    known: dict[str, Config] = {}
    for file in reversed(files):
        known |= _measured_before(file)
    before = dict(tables.table(device))
    tuner: _Tuner | None = None
    unwritten: OSError | None = None
    columns = TextColumn("tuning {task.description}"), BarColumn(24), MofNCompleteColumn()
    try:
        with torch.cuda.device_of(anchor), Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None)
            tuner = _Tuner(find_calls(model, *example_inputs), device, backward, {} if force else known)
            while key := tuner.next():
                bar.update(task, description=key, completed=len(tuner.met), total=len(tuner.candidates), refresh=True)
                if (row := tuner.decide(key)) is None:
                    continue
                try:
                    tables.write_table(files[0], gpu, {key: row.config})
                except OSError as error:
                    unwritten = error
                if not console.is_terminal:  # a bar is nothing for a log
                    console.print(f"tuned {key}, {len(tuner.met)} of {len(tuner.candidates)}", highlight=False)
    finally:
        if tuner is not None:  # an interrupted tuning keeps what it has
            tables.set_table(device, before | tuner.decided())
        if unwritten:
            warnings.warn(f"cannot write {files[0]} ({unwritten}): the configurations hold in this process only", stacklevel=2)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    result = Tuned(tuner.decided(), tuner.rows, tuner.skipped, tuner.dropped)
    if result.rows:
        console.print(result.table())
    if export is not None:
        tables.write_table(Path(export), gpu, result.configs)
    return result
