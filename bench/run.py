"""Operators and whole networks side by side: as published, as plain PyTorch compiled, ours, and others of ATMNet's class.

python bench/run.py                    on the CPU: ATMNet-T at 224 x 224, batch 4, float32; minutes
python bench/run.py --device cuda      operators and networks, four sizes, bfloat16 and float32, the most important first

Nothing is timed that is not right: every operator and network is first compared with its definition in float64, by the tests' rule.
What is measured so far is always in <device>-<date>.csv (the day's second: -2.csv); tables (.md) and plots (.png) follow. The exit status
is 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import jobs
import limits
import networks
import report
import torch
from about import MODE, MODEL, commit, describe
from jobs import Bench, Job, name_of
from operators import Row
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from timing import what_failed

import atm_triton
from atm_triton.__main__ import device as parse_device
from atm_triton.tuning import tables

KEY = ("section", "name", "what", "shape", "dtype", "batch", "implementation")
MODES = (MODE, "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=parse_device, default=torch.device("cpu"))
    parser.add_argument("--model", type=limits.model_name, default=MODEL)
    parser.add_argument("--compile-mode", choices=MODES, default=MODE, help="of everything that is compiled")
    seconds = "for each implementation (default: 0.5 on a GPU; on a CPU 4 of a network, 1 of an operator)"
    parser.add_argument("--seconds", type=float, help=seconds)
    parser.add_argument("--quick", action="store_true", help="everything once, too small to say anything about speed")
    parser.add_argument("--only", metavar="TEXT", default="", help="what has TEXT in its title, such as token_mix or bfloat16")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so many")
    parser.add_argument("--resume", action="store_true", help="keep the device's newest file, and measure what it lacks or what failed")
    parser.add_argument("--commit", metavar="TEXT", help="what is measured, where there is no git to tell")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="(default, for all of it: bench/results)")
    return parser


def plan(args: argparse.Namespace) -> list[Job]:
    gpu = args.device.type == "cuda"
    seconds = (args.seconds,) * 2 if args.seconds is not None else (0.5, 0.5) if gpu else (1, 4)
    bench = Bench(args.model, args.device, args.compile_mode, *seconds)
    return (jobs.on_gpu if gpu else jobs.on_cpu)(bench, args.quick)


def with_speedups(rows: list[Row]) -> list[Row]:
    """Add speed-ups of what computes the same and was measured together, direction by direction."""
    published = {row["what"]: row.get("p50_ms") for row in rows if row["implementation"] == "published"}
    for row in rows:
        reference = published.get(row["what"]) if row["implementation"] not in networks.OTHERS else None
        if reference and row.get("p50_ms"):
            row["speedup"] = reference / row["p50_ms"]
    return rows


def ceiling_rows(ceilings: limits.Ceilings, dtype: torch.dtype) -> list[Row]:
    about = dict(section="ceiling", dtype=name_of(dtype))
    return [
        about | dict(what="copy", gb_per_s=ceilings.bandwidth / 1e9),
        about | dict(what="matrix product", tflop_per_s=ceilings.rate / 1e12),
    ]


def ceilings_in(rows: Iterable[Row], dtype: torch.dtype) -> limits.Ceilings | None:
    found = {row["what"]: row for row in rows if row["section"] == "ceiling" and row["dtype"] == name_of(dtype)}
    if not found:
        return None
    return limits.Ceilings(1e9 * found["copy"]["gb_per_s"], 1e12 * found["matrix product"]["tflop_per_s"])


def went_wrong(row: Row) -> bool:
    """Tell whether a row is of what went wrong: others may lack the memory, ours may not."""
    ill = ("wrong", "failed", "out of memory") if row.get("implementation") in report.LABELS else ("wrong", "failed")
    return row["section"] == "failed" or str(row.get("note", "")).startswith(ill)


def in_short(rows: list[Row]) -> str:
    """Tell what was measured last, or what is wrong with it."""
    row = rows[-1]
    return f"{row['implementation']} {row['p50_ms']:.3g} ms" if row.get("p50_ms") else row.get("note", "")


def results_file(folder: Path, device: str, resume: bool) -> Path:
    """The device's newest to go on with, else a new one."""
    if resume and (newest := report.newest(folder).get(device)):
        return newest
    stem = f"{device}-{datetime.date.today()}"
    names = (f"{stem}-{number}.csv" if number > 1 else f"{stem}.csv" for number in itertools.count(1))
    return next(folder / name for name in names if not (folder / name).exists())


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace, about: Row, file: Path, kept: list[Row]) -> None:
    part = args.quick or (args.only and not kept)
    if args.output is None and (part or args.model != MODEL or args.compile_mode != MODE):
        parser.error(f"{report.RESULTS} is for whole runs of {MODEL} in mode {MODE}: give --output FOLDER for anything else")
    for name in ("device", "torch", "triton", "model", "mode"):
        if other := [row[name] for row in kept if row[name] != (about[name] or "")]:
            parser.error(f"{file} is of {name} {other[0]}, not {about[name]}: leave --resume out to begin another file")


def measure(todo: list[Job], device: torch.device, file: Path, about: Row, minutes: float = float("inf")) -> None:
    """Writes ``file`` after every job. What it holds is not measured again, but for what failed. Begins nothing after so many minutes."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    torch.backends.cudnn.allow_tf32 = False  # as products: all float32 here is float32
    console, begun = Console(soft_wrap=True), time.monotonic()
    kept = report.read(file) if file.is_file() else []
    again = {row["job"] for row in kept if went_wrong(row)} & {job.title for job in todo}
    rows = {tuple(row[name] for name in KEY): row for row in kept}
    done = {row["job"] for row in kept} - again

    def keep(found: list[Row], title: str = "") -> None:
        """Keep what was found, instead of what a job that went wrong has left."""
        for key in [key for key, row in rows.items() if title and row.get("job") == title]:
            del rows[key]
        rows.update({tuple(str(row.get(name, "")) for name in KEY): row | about for row in found})
        report.write(file, rows.values())

    def run(job: Job) -> list[Row]:
        """Run a job so that, whatever happens, the other jobs are done too."""
        try:
            ceilings = ceilings_in(rows.values(), job.dtype)
            if ceilings is None:
                ceilings = limits.measure_ceilings(device, job.dtype)
                keep(ceiling_rows(ceilings, job.dtype))
            return with_speedups(job.run(ceilings))
        except Exception as error:
            return [dict(section="failed", name=job.title, note=what_failed(error))]

    columns = TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(todo))
        for job in todo:
            bar.update(task, description=job.title)
            if job.title not in done and time.monotonic() - begun < 60 * minutes:
                found = [row | dict(job=job.title) for row in run(job)]
                keep(found, job.title)
                if not console.is_terminal:  # a bar is nothing for a log
                    console.print(f"{time.monotonic() - begun:5.0f} s  {job.title}: {in_short(found)}", highlight=False, markup=False)
            bar.advance(task)


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.device.type not in ("cpu", "cuda"):
        parser.error(f"--device {args.device}: nothing here runs on it")
    try:
        atm_triton.backend_info(args.device)
    except ValueError as error:  # a GPU that is not there
        parser.error(f"--device {args.device}: {error}")
    file = results_file(args.output or report.RESULTS, tables.gpu_slug(args.device) or "cpu", args.resume)
    kept = report.read(file) if file.is_file() else []
    about = describe(args.device, args.model, args.compile_mode, args.commit or commit())
    check_arguments(parser, args, about, file, kept)
    todo = [job for job in plan(args) if args.only in job.title]
    if not todo:
        parser.error(f"--only {args.only}: nothing that is measured here has this in its title")
    measure(todo, args.device, file, about, args.minutes)
    if not file.is_file():
        parser.error(f"--minutes {args.minutes:g} is too short to begin anything")
    written = report.render(file)
    measured, console = report.read(file), Console(soft_wrap=True)
    console.print(written[0].read_text(), highlight=False, markup=False)
    console.print("wrote", file, *written, highlight=False)
    return int(any(went_wrong(row) for row in measured))


if __name__ == "__main__":
    sys.exit(main())
