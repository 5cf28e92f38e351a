"""Predictions in files, written as they come: none is held, however many images there are."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from atm_triton.strict_json import dumps

from ..images import describe
from .many import Outcome

LAST = "error"  # the column of a table that tells why an image could not be read

FORM = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}


class CannotWrite(Exception):
    """A file cannot be written; the message says which and why."""


@contextmanager
def telling(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {describe(error)}") from error


class Text:
    """A file of text, or ``-``, the terminal. Whatever a name holds can be written."""

    def __init__(self, path: str) -> None:
        self.path = path
        with telling(path):
            self.file: TextIO = sys.stdout if path == "-" else open(path, "w", **FORM)  # type: ignore[call-overload]  # noqa: SIM115

    def write(self, text: str) -> None:
        with telling(self.path):
            self.file.write(text)

    def close(self) -> None:
        with telling(self.path):
            self.file.flush() if self.path == "-" else self.file.close()


class JsonFile:
    """An array whose items come one by one; it is JSON when closed, whatever stopped them."""

    def __init__(self, path: str) -> None:
        self.text = Text(path)
        self.begin, self.end = "[", "]"
        self.before = ""

    def add(self, item: Any) -> None:
        self.text.write((self.before or f"{self.begin}\n") + dumps(item))
        self.before = ",\n"

    def write(self, number: int, outcome: Outcome) -> None:
        self.add(outcome.to_dict())

    def close(self) -> None:
        try:
            self.text.write(("\n" if self.before else self.begin) + self.end + "\n")
        finally:
            self.text.close()


class CsvFile:
    """A row for each class or object of an image or frame; for one that could not be read, a row with its error."""

    def __init__(self, path: str, columns: Sequence[str]) -> None:
        self.columns = ["image", *columns, LAST]
        self.text = Text(path)
        self._rows([dict(zip(self.columns, self.columns, strict=True))])

    def write(self, number: int, outcome: Outcome) -> None:
        rows = [{LAST: outcome.error}] if outcome.error is not None else outcome.result.rows()
        self._rows([outcome.where() | row for row in rows])

    def _rows(self, rows: Sequence[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns, restval="", extrasaction="ignore").writerows(rows)
        self.text.write(text.getvalue())

    def close(self) -> None:
        self.text.close()
