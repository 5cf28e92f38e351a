"""One command for a machine with a GPU and no network: what is right, how fast it is, whether it trains, in the order of importance.

make gpu-report GPU_PYTHON=python3 GPU_REPORT_FLAGS="--minutes 6 --out output/gpu-report"

Each step is a process of its own and has a budget, with what those before it have left of theirs. Six minutes are enough for the first
steps, up to a training program. Six files are kept in --out, rewritten after each step: report.md for people, results.csv in the format of
bench/results, steps.json for --resume, loss-curve.csv, <gpu>.json with tuned launch configurations, and log.txt. The exit status is 1 if a
step failed or something is wrong, 2 without a GPU.
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
from gpu.steps import STEPS, Place, Row, Step
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from timing import what_failed

from atm_triton.files import write_atomically
from atm_triton.tuning import tables

ROOT = Path(__file__).parents[1]
FOLDERS = [str(ROOT / folder) for folder in ("", "models", "bench", "tests")]  # that steps import from
BUDGETS_FOR = 6  # minutes: with fewer, all budgets are shorter
LEAST = 0.5  # of its budget: a step is not begun with less
LOG = 200_000  # characters kept of what a step prints
TAIL = 20  # lines of it in steps.json
DONE, FAILED = "ok", "failed"  # how a status begins; all others are of what was not begun or cut short


def build_parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=BUDGETS_FOR, help="for all steps together (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "gpu-report", metavar="FOLDER", help="(default: output/gpu-report)")
    parser.add_argument("--resume", action="store_true", help="go on with what is missing in --out, or not ok there, at the same commit")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, to see that all of it works")
    parser.add_argument("--commit", metavar="TEXT", help="what is measured, where there is no git to tell")
    return parser


class Report:
    """The state of a report: all that is known so far, as files."""

    def __init__(self, place: Place, about: dict[str, Any], records: dict[str, summary.Record], order: list[str]) -> None:
        self.place, self.about, self.records, self.order = place, about, records, order

    def note(self, step: Step, status: str, seconds: float, budget: float) -> summary.Record:
        """Note what a step has left behind, and write all files anew."""
        printed, rows, result = self.place.log(step.name), [], ""
        log = printed.read_text(errors="replace")[-LOG:] if printed.is_file() else ""
        try:
            if printed.is_file():  # it was begun
                rows = step.rows(self.place, log)
                result, wrong = step.verdict(self.place, rows, log)
                status = f"{FAILED}: wrong results, {status}" if wrong and not status.startswith(FAILED) else status
        except Exception as error:  # what it wrote is incomplete
            rows, status = [], f"{what_failed(error)}, reading the results of what was {status}"
        record = dict(what=step.what, status=status, seconds=round(seconds, 1), budget=round(budget), result=result)
        record |= dict(commit=self.about["commit"], log=log.splitlines()[-TAIL:])
        if says_less(record, rows, self.records.get(step.name)):
            rows = []
        else:
            self.records[step.name] = record
            self.records = {name: self.records[name] for name in self.order if name in self.records}
        try:
            self.write(step.name, rows, f"==== {step.name}: {status}\n{log}\n" if log else "")
        except Exception as error:
            self.records[step.name] = record = record | dict(status=what_failed(error))
        return record

    def write(self, job: str = "", rows: Sequence[Row] = (), log: str = "") -> None:
        """Write all files. ``rows`` replace those of the same job."""
        results = self.place.results
        if rows:
            kept = report.read(results) if results.is_file() else []
            common = {name: self.about[name] for name in report.ABOUT} | dict(job=job)
            report.write(results, [*(row for row in kept if row["job"] != job), *(row | common for row in rows)])
        replace(self.place.steps, json.dumps(dict(about=self.about, steps=self.records), indent=1, ensure_ascii=False) + "\n")
        replace(self.place.report, summary.markdown(self.about, self.records, results, self.place.loss_curve))
        if log:
            before = self.place.logs.read_text() if self.place.logs.is_file() else ""
            replace(self.place.logs, before + log)


def says_less(record: summary.Record, rows: list[Row], earlier: summary.Record | None) -> bool:
    """Tell whether it was cut short and says less than an earlier attempt: no speed and no result; a speed alone outdoes failure."""
    if earlier is None or record["status"].startswith((DONE, FAILED)) or any(row.get("images_per_s") for row in rows):
        return False
    return bool(rows) or not record["result"] or earlier["status"].startswith(FAILED)


def replace(file: Path, text: str) -> None:
    write_atomically(file, lambda opened: opened.write(text.encode()))


def earlier(parser: argparse.ArgumentParser, place: Place, about: dict[str, Any], resume: bool) -> dict[str, summary.Record]:
    """The records to go on with. What is of another commit, machine or version is not gone on with."""
    if not resume and (there := [file.name for file in place.files if file.exists()]):
        parser.error(f"{place.out} holds a report already ({', '.join(there)}): go on with --resume, or give another --out")
    try:
        content = json.loads(place.steps.read_text()) if place.steps.is_file() else dict(about=about, steps={})
        known = [content["about"], *(report.read(place.results) if place.results.is_file() else [])]
        for name in ("device", "torch", "triton", "commit", "dry_run"):
            if other := [row[name] for row in known if name in row and (row[name] or "") != (about[name] or "")]:
                parser.error(f"{place.out} is of {name} {other[0]}, not {about[name]}: give another --out")
    except (ValueError, KeyError) as error:
        parser.error(f"{place.out} cannot be read ({error}): give another --out")
    return content["steps"]


def environment(dry: bool) -> dict[str, str]:
    path = os.pathsep.join([*FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path} | ({"TORCH_COMPILE_DISABLE": "1"} if dry else {})


def stretch(minutes: float, steps: Sequence[Step]) -> float:
    """Factor of all budgets: more than one only where there is more time than the steps need."""
    return max(min(1, minutes / BUDGETS_FOR), 60 * minutes / max(1, sum(step.seconds for step in steps)))


def run(step: Step, place: Place, budget: float, console: Console) -> str:
    """Status of the step."""
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
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    console, begun = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as work:
        place = Place(args.out.absolute(), Path(work), args.dry_run, about["commit"], tables.table_files(device))
        records = earlier(parser, place, about, args.resume)
        wanted = [step for step in steps if step.name in (args.only or names)]
        todo = [step for step in wanted if records.get(step.name, {}).get("status") != DONE]
        scale, end, until = stretch(args.minutes, todo), begun + 60 * args.minutes, begun
        place.out.mkdir(parents=True, exist_ok=True)
        found = Report(place, about, records, names)
        found.write()  # so that results are never without what they are of
        for step in todo:
            begun, status = time.monotonic(), "stopped"
            until += scale * step.seconds
            left = max(0.0, end - begun)
            budget = min(until - begun, left)
            try:
                if missing := step.missing(place):
                    status = f"skipped: needs {', '.join(missing)}"
                elif budget <= LEAST * step.seconds * min(1, scale):
                    status = f"not begun: {left:.0f} s were left"
                else:
                    status = run(step, place, budget, console)
            except Exception as error:  # the other steps are done all the same
                status = what_failed(error)
            finally:  # also when interrupted
                record = found.note(step, status, time.monotonic() - begun, budget)
            console.print(f"{record['seconds']:5.0f} s  {step.name}: {record['status']}. {record['result']}", highlight=False, markup=False)
    table = Table("step", "status", "seconds", "result")
    for name, record in found.records.items():
        table.add_row(name, escape(record["status"]), f"{record['seconds']:.0f}", escape(record["result"]))
    console.print(table)
    console.print(f"wrote {place.out}", highlight=False)
    return int(any(record["status"].startswith(FAILED) for record in found.records.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # what is known is written
        sys.exit(130)
