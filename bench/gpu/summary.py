"""Summary of a report for people: report.md."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import report

Record = dict[str, Any]  # of a step: what, status, seconds, budget, result, commit, log
EVERY = 20  # updates that a line of the loss curve is the mean of
COLUMNS = ("step", "what", "status", "seconds", "of", "result")


def cells(name: str, record: Record) -> list[str]:
    return [name, record["what"], record["status"], *(f"{record[key]:.0f}" for key in ("seconds", "budget")), record["result"]]


def steps(records: dict[str, Record]) -> Iterator[str]:
    yield from report.head(COLUMNS)
    yield from (report.line(cells(name, record)) for name, record in records.items())


def loss_curve(file: Path) -> Iterator[str]:
    """The mean of every so many updates."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in rows[0] if name != "update"]
    yield from report.head(["updates", *names])
    for start in range(0, len(rows), EVERY):
        some = rows[start : start + EVERY]
        losses = [f"{mean(float(row[name]) for row in some):.4f}" for name in names]
        yield report.line([f"{some[0]['update']} to {some[-1]['update']}", *losses])


def section(title: str, file: Path, lines: Callable[[Path], Iterable[str]]) -> list[str]:
    """Section of a report; what cannot be read takes nothing else along."""
    if not file.is_file():
        return []
    try:
        return [f"## {title}", "", *lines(file), ""]
    except Exception as error:
        return [f"## {title}", "", f"{file.name} cannot be read: {type(error).__name__}: {error}", ""]


def markdown(about: Record, records: dict[str, Record], results: Path, curve: Path) -> str:
    try:
        rows = report.read(results)
    except (OSError, ValueError):  # not there yet, or not whole
        rows = []
    lines = [f"# GPU report, {about['date']}", "", report.about(rows or [about]), ""]
    if about["dry_run"]:
        lines += ["**A dry run: tiny shapes on a CPU, nothing compiled. No figure here says anything about speed.**", ""]
    lines += [*steps(records), ""]
    lines += section("Loss curve", curve, loss_curve)
    lines += section("Results", results, lambda file: report.tables(report.read(file)))
    return "\n".join(lines)
