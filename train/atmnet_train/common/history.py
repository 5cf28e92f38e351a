"""Tables of what a run has measured, as CSV files that survive a kill: `steps.csv` per update, `summary.csv` per epoch."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .files import write_atomically

Row = dict[str, float]


class Table:
    """A CSV file appended to while the run goes on. Its columns are those of the first row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []

    def start(self, keep: Callable[[Row], bool] | None) -> None:
        """Begins anew, or keeps of an earlier part of the run what its checkpoint knew: the rest is about to be run again."""
        self.rows = []
        if keep is not None and self.path.is_file():
            with open(self.path, newline="") as file:
                for text in csv.DictReader(file):
                    try:
                        row = {name: float(value) for name, value in text.items()}
                    except (TypeError, ValueError):
                        continue  # a line cut off by a kill
                    if keep(row):
                        self.rows.append(row)
        content = self._text(self.rows, header=bool(self.rows)).encode()
        write_atomically(self.path, lambda file: file.write(content))

    def append(self, *rows: Mapping[str, float]) -> None:
        new = not self.rows
        self.rows.extend(dict(row) for row in rows)
        with open(self.path, "a", newline="") as file:
            file.write(self._text(rows, header=new))

    def _text(self, rows: Sequence[Mapping[str, float]], header: bool) -> str:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, list(self.rows[0]) if self.rows else [], restval="nan", extrasaction="ignore")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()
