"""Tables of what a run has measured, as CSV files that survive a kill: `steps.csv` per update, `summary.csv` per epoch."""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from atm_triton.files import sync

from .files import cannot_write, write_atomically

Row = dict[str, float]
LONGEST = 10_000  # characters of a line; what is longer is none of ours


class Table:
    """A CSV file appended to while the run goes on. Its columns are those of the first row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []

    def start(self, keep: Callable[[Row], bool] | None) -> None:
        """Begins anew, or keeps of an earlier part of the run what its checkpoint knew: the rest is about to be run again."""
        self.rows = []
        if keep is not None and self.path.is_file():
            for row in self._read():
                with suppress(KeyError):  # under a heading that is damaged
                    self.rows += [row] if keep(row) else []
        content = self._text(self.rows, header=bool(self.rows)).encode()
        write_atomically(self.path, lambda file: file.write(content))

    def append(self, *rows: Mapping[str, float]) -> None:
        """Adds to the file, which must be there: a folder that is gone is not made again."""
        new = not self.rows
        self.rows.extend(dict(row) for row in rows)
        try:
            with open(os.open(self.path, os.O_WRONLY | os.O_APPEND), "w", newline="") as file:
                file.write(self._text(rows, header=new))
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def sync(self) -> None:
        """Returns when the rows are on the disk: a checkpoint must not know more than its tables."""
        try:
            sync(self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _read(self) -> list[Row]:
        rows = list[Row]()
        with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if "\0" not in line]  # as a crash of the system leaves them
            for text in csv.DictReader(line for line in lines if len(line) < LONGEST):
                with suppress(TypeError, ValueError):  # a line cut off by a kill
                    rows.append({name: number(value) for name, value in text.items()})
        if rows and rows[0].get("epoch") == 0:  # of a run from before epochs counted from 1
            rows = [row | {"epoch": row["epoch"] + 1} for row in rows]
        return rows

    def _text(self, rows: Sequence[Mapping[str, float]], header: bool) -> str:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, list(self.rows[0]) if self.rows else [], restval="nan", extrasaction="ignore")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()


def number(text: str) -> float:
    """Integers are written without a point, and stay integers."""
    try:
        return int(text)
    except ValueError:
        return float(text)
