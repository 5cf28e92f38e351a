"""Tables of what an evaluation found of each class, image or pair of classes: CSV files, and on the terminal."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from .files import write_atomically

Rows = Sequence[Mapping[str, Any]]
Tables = Mapping[str, Rows]  # by the name of their file
NAMES = ("class", "image", "true", "predicted", "taken_for")  # columns of text, which may look like numbers
CLASSES = "classes.csv"  # which every program writes
OF_BEST = (CLASSES, "confusion.csv", "wrong.csv")  # what is known of the best weights


def to_rich(rows: Rows) -> Table:
    table = Table()
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for row in rows:
        cells = (f"{value:.2f}" if isinstance(value, float) else "" if value is None else str(value) for value in row.values())
        table.add_row(*map(Text, cells))  # in names, square brackets are no markup
    return table


def write_csv(path: Path, rows: Rows) -> None:
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode(errors="backslashreplace")))


def write_tables(folder: Path, prefix: str, tables: Tables) -> None:
    for name, rows in tables.items():
        write_csv(folder / f"{prefix}{name}", rows)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Reads what `write_csv` wrote, None for nothing; no row where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return [{name: value if name in NAMES else read_cell(value) for name, value in row.items()} for row in csv.DictReader(file)]


def read_cell(text: str) -> int | float | str | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None
