"""A table of what ``swap`` did."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console, Group
from rich.table import Table
from torch import Tensor, nn

from ..profile import count_macs


class Row(NamedTuple):
    """A module that the target matched."""

    name: str
    was: str  # its class
    now: str  # the class in its place, or "left"
    note: str  # what to know about it; of what was left, why


@dataclass(frozen=True)
class Report:
    """Result of ``swap``; printed, it is a table."""

    changed: tuple[Row, ...]
    left: tuple[Row, ...]
    parameters_before: int
    parameters_after: int
    macs_before: int | None = None  # MACs of the example, if one was given
    macs_after: int | None = None

    @property
    def warning(self) -> str | None:
        """What to look at before training: a model that more than doubled."""
        if self.parameters_after <= 2 * self.parameters_before:
            return None
        return (
            f"the model has {self.parameters_after / self.parameters_before:.1f} times the parameters: give a larger share, fewer layers, "
            "or leave dense=True out"
        )

    def __rich__(self) -> Group:
        table = Table()
        for heading in ("modules", "was", "is", "note"):
            table.add_column(heading)
        for rows in (self.changed, self.left):
            groups: dict[tuple[str, ...], list[str]] = {}
            for name, was, now, note in rows:
                groups.setdefault((was, now, note), []).append(name or "(the model)")
            for outcome, names in groups.items():
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                table.add_row(", ".join(names[:3]) + more, *outcome)
        counted = f"parameters {self.parameters_before / 1e6:.2f} M before, {self.parameters_after / 1e6:.2f} M after"
        if self.macs_before is not None and self.macs_after is not None:
            counted += f"; MACs {self.macs_before / 1e9:.3f} G before, {self.macs_after / 1e9:.3f} G after"
        lines = [f"{len(self.changed)} changed, {len(self.left)} left; {counted}"]
        return Group(table, *lines, *([f"Warning: {self.warning}"] if self.warning else []))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=140)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, example: Tensor) -> int:
    """Raises ValueError where the model does not take the example."""
    try:
        return count_macs(model, example)
    except Exception as error:
        raise ValueError(f"the example {list(example.shape)} does not go through the model: {error}") from error
