"""Operators and whole networks side by side: as published, as plain PyTorch compiled, ours, and others of ATMNet's class.

python bench/run.py                    on the CPU: ATMNet-T at 224 x 224, batch 4, float32; minutes
python bench/run.py --device cuda      operators and networks, four sizes, bfloat16 and float32, the most important first

Nothing is timed that is not right: every operator and network is first compared with its definition in float64, by the tests' rule.
What is measured so far is always in <device>-<date>.csv; tables (.md) and plots (.png) follow. The exit status is 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import atmnet
import first_step
import limits
import networks
import operators
import report
import timm
import torch
from networks import Case
from operators import Row
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from timing import what_failed

import atm_triton
from atm_triton import launch

KEY = ("section", "name", "what", "shape", "dtype", "batch", "implementation")
ALL, BEST = (*networks.OURS, *networks.OTHERS), ("published", "compiled", *networks.OTHERS)
MODEL, MODE = "atmnet-t", "default"


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
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--compile-mode", default=MODE, help="of everything that is compiled")
    seconds = "for each implementation (default: 0.5 on a GPU; on a CPU 4 of a network, 1 of an operator)"
    parser.add_argument("--seconds", type=float, help=seconds)
    parser.add_argument("--quick", action="store_true", help="everything once, too small to say anything about speed")
    parser.add_argument("--only", metavar="TEXT", default="", help="what has TEXT in its title, such as token_mix or bfloat16")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so many")
    parser.add_argument("--resume", action="store_true", help="keep what today's file has, and measure what it lacks or what failed")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="(default, for all of it: bench/results)")
    return parser


def plan(args: argparse.Namespace) -> list[Job]:
    """Everything that is measured, the most important first."""
    with torch.device("meta"):
        model = timm.create_model(atmnet.canonical_name(args.model))
    gpu, bf16, fp32 = args.device.type == "cuda", torch.bfloat16, torch.float32
    of_operator, of_network = (args.seconds,) * 2 if args.seconds is not None else (0.5, 0.5) if gpu else (1, 4)
    batch = 2 if args.quick else 128 if gpu else 4
    square = (32, 32) if args.quick else (224, 224)
    # Batches of about as many tokens each.
    sizes = (
        {(64, 64): 2}
        if args.quick
        else {(800, 1280): 6, (384, 384): 48, (512, 2048): 6}
        if gpu
        else {(384, 384): 1, (512, 2048): 1, (800, 1280): 1}
    )

    def operator_jobs(dtype: torch.dtype, mixer: bool, every: int = 1) -> list[Job]:
        """At every stage, or every second one."""
        jobs = []
        shapes = limits.stages(model, batch, square)[:: 3 if args.quick else every]
        for operator in operators.OPERATORS:
            for shape in shapes if mixer == (operator.name == "token_mix") else []:
                arguments = operator, shape, dtype, args.device, args.compile_mode, of_operator
                title = f"{operator.name}, {shape}, {str(dtype).removeprefix('torch.')}"
                jobs.append(Job(title, dtype, functools.partial(operators.measure, *arguments)))
        return jobs

    def network_job(case: Case) -> Job:
        arguments = atmnet.canonical_name(args.model), case, args.device, args.compile_mode, of_network
        return Job(f"network, {case}", case.dtype, functools.partial(networks.measure, *arguments))

    def network_jobs(dtype: torch.dtype, what: str, implementations: tuple[str, ...]) -> list[Job]:
        return [network_job(Case(what, size, number, dtype, implementations)) for size, number in sizes.items()]

    both = [(what, square, batch) for what in ("inference", "training step")]
    if not gpu:
        jobs = [network_job(Case(*both[0], fp32, ALL)), network_job(Case(*both[1], fp32, networks.OURS))]
        jobs += network_jobs(fp32, "inference", ("eager",))
        return jobs + operator_jobs(fp32, mixer=True) + operator_jobs(fp32, mixer=False, every=2)
    jobs = operator_jobs(bf16, mixer=True)
    jobs += [network_job(Case(*shape, bf16, ALL)) for shape in both]
    jobs += network_jobs(bf16, "inference", BEST) + operator_jobs(bf16, mixer=False)
    jobs += [network_job(Case(*shape, fp32, ALL)) for shape in both]
    jobs += operator_jobs(fp32, mixer=True) + network_jobs(bf16, "training step", BEST)
    jobs += network_jobs(fp32, "inference", ("published", "compiled")) + network_jobs(fp32, "training step", ("published", "compiled"))
    return jobs + operator_jobs(fp32, mixer=False)


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
    return str(row.get("note", "")).startswith(("wrong", "failed"))


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace, file: Path) -> None:
    if args.output is None and (args.quick or args.only or args.model != MODEL or args.compile_mode != MODE) and not args.resume:
        parser.error(f"{report.RESULTS} is for whole runs of {MODEL} in mode {MODE}: give --output FOLDER for anything else")
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch {torch.__version__} sees no GPU here")
    if file.is_file() and not args.resume:
        parser.error(f"{file} is there already: --resume adds what it lacks, --output FOLDER writes elsewhere")


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    slug = launch.gpu_slug(args.device) if torch.cuda.is_available() else None
    file = (args.output or report.RESULTS) / f"{slug or args.device.type}-{datetime.date.today()}.csv"
    check_arguments(parser, args, file)
    console, begun = Console(soft_wrap=True), time.monotonic()
    info = atm_triton.backend_info(args.device)
    about = dict(device=device_name(args.device), torch=info.torch, triton=info.triton, commit=commit())
    about["configs"] = info.configs.replace(os.path.expanduser("~"), "~")
    kept = report.read(file) if file.is_file() else []
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

    jobs = [job for job in plan(args) if args.only in job.title]
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
    if args.device.type == "cuda":
        keep([dict(section="first step", note=first_step.benchmarks(args.model))])
    written = report.render(file)
    measured = report.read(file)
    console.print(written[0].read_text(), highlight=False, markup=False)
    console.print("wrote", file, *written, highlight=False)
    return int(any(went_wrong(row) for row in measured))


if __name__ == "__main__":
    sys.exit(main())
