"""Costs of the networks of videos, which the paper does not have."""

from __future__ import annotations

from rich.table import Table

from ..model import TIME
from ..variants import VIDEO
from .paper import cost


def video_costs(size: tuple[int, int] = (224, 224), frames: int = 16) -> Table:
    """Parameters and MACs of a clip, by how much of the network mixes along time."""
    height, width = size
    table = Table("model", "time", title=f"ATMNet of clips of {frames} x {height} x {width}", caption="time: the stages that mix along it")
    for heading in ("parameters (M)", "MACs (G)"):
        table.add_column(heading, justify="right")
    for name in VIDEO:
        for time in TIME:
            parameters, count = cost(name, dict(time=time, frames=frames), size)
            table.add_row(name, time, f"{parameters:.2f}", f"{count:.1f}", end_section=time == [*TIME][-1])
    return table
