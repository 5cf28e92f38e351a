"""What the library must reach, judged on a results file's rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
SQUARE, OTHER_SIZES = "224x224", ("800x1280", "384x384", "512x2048")


def _find(rows: list[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _number(rows: list[Row], column: str, **wanted: str) -> float:
    """NaN where it is not there, exactly once."""
    found = [row[column] for row in _find(rows, **wanted) if row[column]]
    return found[0] if len(found) == 1 else math.nan


def _times(value: float) -> str:
    return f"{value:.2f}×"


def _operator(rows: list[Row], what: str, against: str, goal: float) -> tuple[str, str, bool | None]:
    """The worst of the four stages, so that none hides behind a slower one."""
    of = dict(section="operator", name="token_mix", what=what, dtype="bfloat16", batch="128")
    ours = {row["shape"]: row["p50_ms"] for row in _find(rows, **of, implementation="compiled")}
    theirs = {row["shape"]: row["p50_ms"] for row in _find(rows, **of, implementation=against)}
    if len(ours) != 4 or ours.keys() != theirs.keys() or not all([*ours.values(), *theirs.values()]):
        measured, text = math.nan, ""
    else:
        ratios = {shape: theirs[shape] / ours[shape] for shape in sorted(ours, key=lambda shape: int(re.split("[x/]", shape)[3]))}
        measured = min(ratios.values())
        text = f"{_times(measured)} (by stage {', '.join(map(_times, ratios.values()))})"
    return f"token_mix {what}, bf16, batch 128, each stage against {against}: at least {goal:g}×", text, _met(measured, goal)


def _met(measured: float, goal: float, at_most: bool = False) -> bool | None:
    if math.isnan(measured):
        return None
    return measured <= goal if at_most else measured >= goal


def _linear(rows: list[Row], what: str, dtype: str, implementation: str) -> Iterator[tuple[str, str, bool | None]]:
    """The cost of a token must not grow with the image."""

    def tokens(size: str) -> float:
        of = dict(section="network", what=what, dtype=dtype, implementation=implementation)
        return _number(rows, "images_per_s", **of, shape=size) * math.prod(map(int, size.split("x")))

    for size in OTHER_SIZES:
        ratio = tokens(size) / tokens(SQUARE)
        yield f"{what}, {dtype}, {implementation}, tokens/s at {size} against {SQUARE}: at least 0.9×", _times(ratio), _met(ratio, 0.9)


def _gpu(rows: list[Row]) -> Iterator[tuple[str, str, bool | None]]:
    for what, goals in (("forward", (10, 3)), ("forward+backward", (8, 3))):
        for against, goal in zip(("published", "plain, compiled"), goals, strict=True):
            yield _operator(rows, what, against, goal)
    of = dict(section="operator", name="token_mix", what="forward", dtype="bfloat16", implementation="compiled")
    for stage, shape in ((1, "128x56x56x64/G32"), (2, "128x28x28x128/G32")):
        share = _number(rows, "share_of_limit", **of, shape=shape)
        yield f"token_mix forward, bf16, stage {stage}: at least 70 % of the limit", f"{share:.0%}", _met(share, 0.7)

    def network(what: str, implementation: str, column: str) -> float:
        of = dict(section="network", what=what, shape=SQUARE, dtype="bfloat16", implementation=implementation)
        return _number(rows, column, **of)

    for ours in ("compiled", "eager"):  # published is eager
        memory = network("training step", ours, "peak_mib") / network("training step", "published", "peak_mib")
        yield f"peak memory of a training step, bf16, {ours}: at most 0.5× published", _times(memory), _met(memory, 0.5, at_most=True)
    for what, others in (("inference", ("ConvNeXt-T, compiled", "Swin-T, compiled")), ("training step", ("Swin-T, compiled",))):
        for other in others:
            ratio = network(what, "compiled", "images_per_s") / network(what, other, "images_per_s")
            yield f"{what}, bf16, images/s against {other}: at least 1×", _times(ratio), _met(ratio, 1)
    for what in ("inference", "training step"):
        yield from _linear(rows, what, "bfloat16", "compiled")
    for row in _find(rows, section="first step"):
        met = row["note"] == "0" if row["note"] != "no tuned table" else None
        yield "benchmarks launched in the first step after import, with a tuned table: none", row["note"], met


def _cpu(rows: list[Row]) -> Iterator[tuple[str, str, bool | None]]:
    for what, goal in (("inference", 2.5), ("training step", 6)):
        of = dict(section="network", what=what, shape=SQUARE, dtype="float32")
        speedup = _number(rows, "speedup", **of, implementation="compiled")
        yield f"{what}, float32, 224²: at least {goal:g}× published", _times(speedup), _met(speedup, goal)
        ratio = speedup / _number(rows, "speedup", **of, implementation="eager")
        yield f"{what}, float32, 224²: compiled never slower than eager", _times(ratio), _met(ratio, 1)
    yield from _linear(rows, "inference", "float32", "eager")


def judge(rows: list[Row]) -> list[tuple[str, str, str]]:
    """Each target, what was measured, and whether it is met."""
    cpu = "threads" in rows[0]["device"]
    words = {True: "yes", False: "**no**", None: "not measured"}
    return [(target, "" if met is None else text, words[met]) for target, text, met in (_cpu(rows) if cpu else _gpu(rows))]
