"""One command for a machine with a GPU and no network: what is right, how fast it is, whether it trains, in the order of importance.

make gpu-report GPU_PYTHON=python3 GPU_REPORT_FLAGS="--minutes 6 --out output/gpu-report"

Each step is a process of its own and has a budget; whatever time runs out, the most important is known. Six files are kept in --out,
rewritten after each step: report.md for people, results.csv in the format of bench/results, steps.json for --resume, loss-curve.csv,
<gpu>.json with tuned launch configurations, and log.txt. The exit status is 1 if a step failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import report
import torch
from about import MODE, MODEL, commit, describe
from gpu import process, summary
from gpu.steps import STEPS, Place, Step
from rich.console import Console
from rich.table import Table

from atm_triton.tuning import tables

ROOT = Path(__file__).parents[1]
FOLDERS = [str(ROOT / folder) for folder in ("", "models", "bench", "tests")]  # that steps import from
BUDGETS_FOR = 6  # minutes
LEAST = 0.5  # of its budget: a step is not begun with less
LOG = 200_000  # characters kept of what a step prints
TAIL = 20  # lines of it in steps.json
DONE = "ok"


def build_parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=BUDGETS_FOR, help="for all steps; budgets are longer or shorter accordingly (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "gpu-report", metavar="FOLDER", help="(default: output/gpu-report)")
    parser.add_argument("--resume", action="store_true", help="go on with what is missing in --out, or not ok there")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, to see that all of it works")
    parser.add_argument("--commit", metavar="TEXT", help="what is measured, where there is no git to tell")
    return parser


class Report:
    """What is known so far, as files."""

    def __init__(self, place: Place, about: dict[str, Any], records: dict[str, summary.Record], order: list[str]) -> None:
        self.place, self.about, self.records, self.order = place, about, records, order

    def note(self, step: Step, status: str, seconds: float, budget: float) -> summary.Record:
        """What a step has left behind, and all files anew."""
        printed = self.place.log(step.name)
        log = printed.read_text(errors="replace")[-LOG:] if printed.is_file() else ""
        try:
            rows = step.rows(self.place, log)
        except (OSError, ValueError, KeyError) as error:  # what it wrote is incomplete
            rows, status = [], f"{status}; its results cannot be read: {error}"
        if rows:
            kept = report.read(self.place.results) if self.place.results.is_file() else []
            common = {name: self.about[name] for name in report.ABOUT} | dict(job=step.name)
            report.write(self.place.results, [*(row for row in kept if row["job"] != step.name), *(row | common for row in rows)])
        record = dict(what=step.what, status=status, seconds=round(seconds, 1), budget=round(budget), result=step.result(rows, log))
        self.records[step.name] = record | dict(log=log.splitlines()[-TAIL:])
        self.records = {name: self.records[name] for name in self.order if name in self.records}
        replace(self.place.out / "steps.json", json.dumps(dict(about=self.about, steps=self.records), indent=1, ensure_ascii=False) + "\n")
        text = summary.markdown(self.about, self.records, self.place.results, self.place.loss_curve)
        replace(self.place.out / "report.md", text)
        if log:
            file = self.place.out / "log.txt"
            before = file.read_text() if file.is_file() else ""
            replace(file, f"{before}==== {step.name}: {status}\n{log}\n")
        return record


def replace(file: Path, text: str) -> None:
    """``file`` is at every moment the old or the new one."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(file)


def earlier(parser: argparse.ArgumentParser, out: Path, about: dict[str, Any], resume: bool) -> dict[str, summary.Record]:
    """The records to go on with."""
    file = out / "steps.json"
    if not file.is_file():
        return {}
    if not resume:
        parser.error(f"{out} holds a report already: go on with --resume, or give another --out")
    content = json.loads(file.read_text())
    for name in ("device", "torch", "triton", "dry_run"):
        if content["about"][name] != about[name]:
            parser.error(f"{out} is of {name} {content['about'][name]}, not {about[name]}: give another --out")
    return content["steps"]


def environment(dry: bool) -> dict[str, str]:
    path = os.pathsep.join([*FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path} | ({"TORCH_COMPILE_DISABLE": "1"} if dry else {})


def run(step: Step, place: Place, budget: float, console: Console) -> str:
    """Its status."""
    waiting = console.status(f"{step.name}, up to {budget:.0f} s") if console.is_terminal else nullcontext()
    with waiting:
        return process.run(step.command(place), place.log(step.name), budget, ROOT, environment(place.dry))


def main(arguments: list[str] | None = None, steps: Sequence[Step] = STEPS) -> int:
    names = [step.name for step in steps]
    parser = build_parser(names)
    args = parser.parse_args(arguments)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error(f"there is no GPU here that torch {torch.__version__} can use; --dry-run tries everything on the CPU")
    device = torch.device("cpu" if args.dry_run else "cuda")
    about = describe(device, MODEL, MODE, args.commit or commit()) | dict(date=str(datetime.date.today()), dry_run=args.dry_run)
    records = earlier(parser, args.out, about, args.resume)
    wanted = [step for step in steps if step.name in (args.only or names)]
    todo = [step for step in wanted if records.get(step.name, {}).get("status") != DONE]
    args.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console, end = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140), time.monotonic() + 60 * args.minutes
    # Fewer steps share all the time.
    scale = max(args.minutes / BUDGETS_FOR, 60 * args.minutes / max(1, sum(step.seconds for step in todo)))
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as work:
        place = Place(args.out.absolute(), Path(work), args.dry_run, about["commit"], tables.table_files(device))
        found = Report(place, about, records, names)
        for step in todo:
            begun = time.monotonic()
            left, status = end - begun, "stopped"
            budget = min(scale * step.seconds, left)
            try:
                if missing := step.missing(place):
                    status = f"skipped: needs {', '.join(missing)}"
                elif budget < LEAST * step.seconds * min(1, scale):
                    status = f"not begun: {max(0, left):.0f} s were left"
                else:
                    status = run(step, place, budget, console)
            finally:  # also when interrupted
                record = found.note(step, status, time.monotonic() - begun, budget)
            console.print(f"{record['seconds']:5.0f} s  {step.name}: {status}. {record['result']}", highlight=False, markup=False)
    table = Table("step", "status", "seconds", "result")
    for name, record in found.records.items():
        table.add_row(name, record["status"], f"{record['seconds']:.0f}", record["result"])
    console.print(table)
    console.print(f"wrote {place.out}", highlight=False)
    return int(any(record["status"].startswith("failed") for record in found.records.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # what is known is written
        sys.exit(130)
