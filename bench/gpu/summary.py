"""What a report says for people: report.md."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import report

Record = dict[str, Any]  # of a step: what, status, seconds, budget, result
EVERY = 20  # updates that a line of the loss curve is the mean of
COLUMNS = ("step", "what", "status", "seconds", "of", "result")


def cells(name: str, record: Record) -> list[str]:
    return [name, record["what"], record["status"], *(f"{record[key]:.0f}" for key in ("seconds", "budget")), record["result"]]


def steps(records: dict[str, Record]) -> Iterator[str]:
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * len(COLUMNS)
    for name, record in records.items():
        yield f"| {' | '.join(cells(name, record)).replace(chr(10), ' ')} |"


def loss_curve(file: Path) -> Iterator[str]:
    """The mean of every so many updates."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in rows[0] if name != "update"]
    yield f"| updates | {' | '.join(names)} |"
    yield "|" + "---|" * (1 + len(names))
    for start in range(0, len(rows), EVERY):
        some = rows[start : start + EVERY]
        losses = [f"{mean(float(row[name]) for row in some):.4f}" for name in names]
        yield f"| {some[0]['update']} to {some[-1]['update']} | {' | '.join(losses)} |"


def markdown(about: Record, records: dict[str, Record], results: Path, curve: Path) -> str:
    lines = [f"# GPU report, {about['date']}", "", report.about([about]), ""]
    if about["dry_run"]:
        lines += ["**A dry run: tiny shapes on a CPU, nothing compiled. No figure here says anything about speed.**", ""]
    lines += [*steps(records), ""]
    if curve.is_file():
        lines += ["## Loss curve", "", *loss_curve(curve), ""]
    if results.is_file():
        lines += ["## Results", "", *report.tables(report.read(results))]
    return "\n".join(lines) + "\n"
