"""A table of what ``swap`` or ``unswap`` did. That of ``swap`` is also the description by which another model is swapped alike."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.table import Table
from torch import Tensor, nn

from ..files import write_atomically
from ..profile import count_macs
from ..strict_json import dumps, loads
from .convert import Converters
from .replacement import Options


class Row(NamedTuple):
    """A module that the target matched."""

    name: str
    was: str  # its class
    now: str  # the class in its place, or "left"
    note: str  # what to know about it; of what was left, why


@dataclass(frozen=True)
class Report:
    """Result of ``swap`` and of ``unswap``; printed, it is a table."""

    changed: tuple[Row, ...]
    left: tuple[Row, ...]
    parameters_before: int
    parameters_after: int
    macs_before: int | None = None  # MACs of the example, if one was given
    macs_after: int | None = None
    options: Options | None = None  # of swap

    @property
    def warning(self) -> str | None:
        """What to look at before training: a model that more than doubled."""
        if self.options is None or self.parameters_after <= 2 * self.parameters_before:
            return None
        return (
            f"the model has {self.parameters_after / self.parameters_before:.1f} times the parameters: give a larger share, fewer layers, "
            "or leave dense=True out"
        )

    def apply(self, model: nn.Module, converters: Converters | None = None) -> Report:
        """Swap in another model what was swapped in this report's, in the same way; then it takes the swapped model's ``state_dict``.

        Args:
            model: Of the same architecture, not swapped yet (or swapped by the reports before this one).
            converters: Those that ``swap`` was given.

        Raises:
            ValueError: the report is of ``unswap``, or the model has not the modules that were swapped; it is as it was.
        """
        from .swap import remember, reports_of, swap  # which makes reports

        if self.options is None:
            raise ValueError("this report is of unswap: apply that of swap")
        expected = {row.name: row[1:3] for row in self.changed}
        if not expected:
            raise ValueError("this report changed nothing, so there is nothing to apply")
        before, earlier = dict(model.named_modules(remove_duplicate=False)), reports_of(model)
        if missing := [name for name in expected if name not in before]:
            raise ValueError(f"{type(model).__name__} has no {_shorten(missing)}, which the report swapped: it is of another model")
        report = swap(model, lambda name, module: name in expected, **self.options._asdict(), converters=converters)
        found = {row.name: row[1:3] for row in report.changed}
        if found != expected:
            for name in found:
                model.set_submodule(name, before[name])
            remember(model, earlier)
            wrong = [f"{name} ({' -> '.join(kinds)})" for name, kinds in expected.items() if found.get(name) != kinds]
            raise ValueError(f"{type(model).__name__} cannot be swapped as the report says: {_shorten(wrong or sorted(found))}")
        return report

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, from which ``Report.load`` makes it again."""
        write_atomically(Path(path), lambda file: file.write(dumps(self.to_json(), indent=1).encode()))

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "options": self.options and self.options._asdict()}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read what ``save`` has written."""
        try:
            return cls.from_json(loads(Path(path).read_text()))
        except FileNotFoundError:
            raise
        except (TypeError, ValueError, LookupError, RecursionError) as error:
            raise ValueError(f"{path} is no report of swap, as report.save writes it: {error}") from error

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Report:
        found = cls(**content)
        options = found.options and Options(**content["options"])
        if options and options.grid:
            options = options._replace(grid=(options.grid[0], options.grid[1]))
        rows = {name: tuple(Row(*row) for row in content[name]) for name in ("changed", "left")}
        numbers = found.parameters_before, found.parameters_after, options.share if options else 1
        if not all(type(number) is int for number in numbers) or not all(
            isinstance(text, str) for row in sum(rows.values(), ()) for text in row
        ):
            raise TypeError("parameters and share are whole numbers, rows are of text")
        return replace(found, **rows, options=options)  # type: ignore[arg-type]

    def __rich__(self) -> Group:
        table = Table()
        for heading in ("modules", "was", "is", "note"):
            table.add_column(heading)
        for rows in (self.changed, self.left):
            groups: dict[tuple[str, ...], list[str]] = {}
            for name, was, now, note in rows:
                groups.setdefault((was, now, note), []).append(name or "(the model)")
            for outcome, names in groups.items():
                table.add_row(_shorten(names), *outcome)
        counted = f"parameters {self.parameters_before / 1e6:.2f} M before, {self.parameters_after / 1e6:.2f} M after"
        if self.macs_before is not None and self.macs_after is not None:
            counted += f"; MACs {self.macs_before / 1e9:.3f} G before, {self.macs_after / 1e9:.3f} G after"
        lines = [f"{len(self.changed)} changed, {len(self.left)} left; {counted}"]
        return Group(table, *lines, *([f"Warning: {self.warning}"] if self.warning else []))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=140)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, example: Tensor) -> int:
    """Raises ValueError where the model does not take the example."""
    try:
        return count_macs(model, example)
    except Exception as error:
        raise ValueError(f"the example {list(example.shape)} does not go through the model: {error}") from error
