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
import functools
import itertools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import first_step
import limits
import networks
import operators
import report
import torch
from networks import Case
from operators import Row
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from timing import clean_slate, what_failed

import atm_triton
from atm_triton.__main__ import device as parse_device
from atm_triton.tuning import tables

KEY = ("section", "name", "what", "shape", "dtype", "batch", "implementation")
MODEL, MODE = "atmnet_t", "default"
MODES = (MODE, "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class Job(NamedTuple):
    """What is measured together."""

    title: str
    dtype: torch.dtype
    run: Callable[[limits.Ceilings], list[Row]]


def commit() -> str:
    """What was measured; a plus sign: with changes that are not committed."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:  # no git here
        described = ""
    return described or f"release {atm_triton.__version__}"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


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
    """Everything that is measured; what the targets are about comes first."""
    model = limits.on_meta(args.model)
    gpu, bf16, fp32 = args.device.type == "cuda", torch.bfloat16, torch.float32
    of_operator, of_network = (args.seconds,) * 2 if args.seconds is not None else (0.5, 0.5) if gpu else (1, 4)
    # Batches of about as many tokens each.
    square = {(32, 32): 2} if args.quick else {(224, 224): 128 if gpu else 4}
    others = {(64, 64): 2}
    if not args.quick:
        others = {(800, 1280): 6, (384, 384): 48, (512, 2048): 6} if gpu else {(384, 384): 1, (512, 2048): 1, (800, 1280): 1}

    mixer = [operator for operator in operators.OPERATORS if operator.name == "token_mix"]
    its_parts = [operator for operator in operators.OPERATORS if operator not in mixer]

    def operator_jobs(chosen: list[operators.Operator], dtype: torch.dtype, sizes: dict[tuple[int, int], int], stages: slice) -> list[Job]:
        jobs = []
        for operator, (size, batch) in itertools.product(chosen, sizes.items()):
            for shape in limits.stages(model, batch, size)[stages]:
                arguments = operator, shape, dtype, args.device, args.compile_mode, of_operator
                title = f"{operator.name}, {shape}, {str(dtype).removeprefix('torch.')}"
                jobs.append(Job(title, dtype, functools.partial(operators.measure, *arguments)))
        return jobs

    def network_jobs(dtype: torch.dtype, sizes: dict[tuple[int, int], int], what: str, *implementations: str) -> list[Job]:
        jobs = []
        for size, batch in sizes.items():
            case = Case(what, size, batch, dtype, implementations or networks.ALL)
            arguments = args.model, case, args.device, args.compile_mode, of_network
            jobs.append(Job(f"network, {case}", dtype, functools.partial(networks.measure, *arguments)))
        return jobs

    def first_step_job() -> Job:
        def run(_: limits.Ceilings) -> list[Row]:
            clean_slate(args.device)  # the process needs room
            note = first_step.benchmarks(args.model, str(args.device))
            return [dict(section="first step", name=args.model, what="first step", implementation="", note=note)]

        return Job("first step", bf16, run)

    every, second, first = slice(1 if args.quick else None), slice(None, 1 if args.quick else None, 2), slice(1)
    if not gpu:
        jobs = network_jobs(fp32, square, "inference") + network_jobs(fp32, square, "training step", *networks.OURS)
        jobs += network_jobs(fp32, others, "inference", "eager")
        jobs += operator_jobs(mixer, fp32, square, every) + operator_jobs(mixer, fp32, others, first)
        return jobs + operator_jobs(its_parts, fp32, square, second)
    jobs = []
    for dtype in (bf16, fp32):
        jobs += operator_jobs(mixer, dtype, square, every)
        jobs += network_jobs(dtype, square, "inference") + network_jobs(dtype, square, "training step")
        jobs += [first_step_job()] if dtype == bf16 else []
        jobs += network_jobs(dtype, others, "inference") + network_jobs(dtype, others, "training step")
        jobs += operator_jobs(mixer, dtype, others, every) + operator_jobs(its_parts, dtype, square, every)
    return jobs


def with_speedups(rows: list[Row]) -> list[Row]:
    """Of what computes the same and was measured together, direction by direction."""
    published = {row["what"]: row.get("p50_ms") for row in rows if row["implementation"] == "published"}
    for row in rows:
        reference = published.get(row["what"]) if row["implementation"] not in networks.OTHERS else None
        if reference and row.get("p50_ms"):
            row["speedup"] = reference / row["p50_ms"]
    return rows


def ceiling_rows(ceilings: limits.Ceilings, dtype: torch.dtype) -> list[Row]:
    about = dict(section="ceiling", dtype=str(dtype).removeprefix("torch."))
    return [
        about | dict(what="copy", gb_per_s=ceilings.bandwidth / 1e9),
        about | dict(what="matrix product", tflop_per_s=ceilings.rate / 1e12),
    ]


def ceilings_in(rows: Iterable[Row], dtype: torch.dtype) -> limits.Ceilings | None:
    found = {row["what"]: row for row in rows if row["section"] == "ceiling" and row["dtype"] == str(dtype).removeprefix("torch.")}
    if not found:
        return None
    return limits.Ceilings(1e9 * found["copy"]["gb_per_s"], 1e12 * found["matrix product"]["tflop_per_s"])


def went_wrong(row: Row) -> bool:
    return row["section"] == "failed" or str(row.get("note", "")).startswith(("wrong", "failed"))


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


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.device.type not in ("cpu", "cuda"):
        parser.error(f"--device {args.device}: nothing here runs on it")
    try:
        info = atm_triton.backend_info(args.device)
    except ValueError as error:  # a GPU that is not there
        parser.error(f"--device {args.device}: {error}")
    file = results_file(args.output or report.RESULTS, tables.gpu_slug(args.device) or "cpu", args.resume)
    kept = report.read(file) if file.is_file() else []
    about = dict(device=device_name(args.device), torch=info.torch, triton=info.triton, commit=args.commit or commit())
    about |= dict(configs=info.configs.replace(os.path.expanduser("~"), "~"), model=args.model, mode=args.compile_mode)
    check_arguments(parser, args, about, file, kept)
    jobs = [job for job in plan(args) if args.only in job.title]
    if not jobs:
        parser.error(f"--only {args.only}: nothing that is measured here has this in its title")
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device.index or 0)
    torch.backends.cudnn.allow_tf32 = False  # as products: all float32 here is float32
    console, begun = Console(soft_wrap=True), time.monotonic()
    again = {row["job"] for row in kept if row["job"] and went_wrong(row)}
    rows = {tuple(row[name] for name in KEY): row for row in kept if row["job"] not in again}
    done = {row["job"] for row in rows.values()}

    def keep(found: list[Row]) -> None:
        rows.update({tuple(str(row.get(name, "")) for name in KEY): row | about for row in found})
        report.write(file, rows.values())

    def measure(job: Job) -> list[Row]:
        """Whatever happens, the other jobs are done too."""
        try:
            ceilings = ceilings_in(rows.values(), job.dtype)
            if ceilings is None:
                ceilings = limits.measure_ceilings(args.device, job.dtype)
                keep(ceiling_rows(ceilings, job.dtype))
            return with_speedups(job.run(ceilings))
        except Exception as error:
            return [dict(section="failed", name=job.title, note=what_failed(error))]

    columns = TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(jobs))
        for job in jobs:
            bar.update(task, description=job.title)
            if job.title not in done and time.monotonic() - begun < 60 * args.minutes:
                keep([row | dict(job=job.title) for row in measure(job)])
                if not console.is_terminal:  # a bar is nothing for a log
                    console.print(f"{time.monotonic() - begun:5.0f} s  {job.title}", highlight=False)
            bar.advance(task)
    if not file.is_file():
        parser.error(f"--minutes {args.minutes:g} is too short to begin anything")
    written = report.render(file)
    measured = report.read(file)
    console.print(written[0].read_text(), highlight=False, markup=False)
    console.print("wrote", file, *written, highlight=False)
    return int(any(went_wrong(row) for row in measured))


if __name__ == "__main__":
    sys.exit(main())
