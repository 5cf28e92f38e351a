"""Targets of the library, judged on a results file's rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
RULE = 1.03
CHANNELS = (64, 128, 320, 512)  # of ATMNet-T's stages
SQUARE, OTHER_SIZES = "224x224", ("800x1280", "384x384", "512x2048")


def _find(rows: list[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _number(rows: list[Row], column: str, **wanted: str) -> float:
    """Find a number; NaN where it is not there exactly once."""
    found = [row[column] for row in _find(rows, **wanted) if row[column]]
    return found[0] if len(found) == 1 else math.nan


def _times(value: float) -> str:
    return f"{value:.2f}×"


def _channels(shape: str) -> int:
    """Channels of ``<B>x<H>x<W>x<C>/G<G>``."""
    return int(re.split("[x/]", shape)[3])


def _operator(rows: list[Row], what: str, against: str, stages: tuple[int, ...], goal: float) -> tuple[str, str, bool | None]:
    """The worst of some stages, so that none hides behind a slower one."""
    of = dict(section="operator", name="token_mix", what=what, dtype="bfloat16", batch="128")
    ours, theirs = (
        {_channels(row["shape"]): row["p50_ms"] for row in _find(rows, **of, implementation=name)} for name in ("compiled", against)
    )
    needed = [times.get(C) for times in (ours, theirs) for C in CHANNELS]
    if not all(needed):
        measured, text = math.nan, ""
    else:
        ratios = [theirs[CHANNELS[stage - 1]] / ours[CHANNELS[stage - 1]] for stage in stages]
        measured = min(ratios)
        text = f"{_times(measured)} ({', '.join(map(_times, ratios))})"
    names = " and ".join(map(str, stages))
    return f"token_mix {what}, bf16, batch 128, stages {names}, against {against}: at least {goal:g}×", text, _met(measured, goal)


def _rule(rows: list[Row]) -> tuple[str, str, bool | None]:
    """Judge that ours, compiled, is never slower than plain PyTorch, compiled, but for the noise of a measurement."""
    times: dict[tuple[str, ...], dict[str, float]] = {}
    for row in _find(rows, section="operator", name="token_mix"):
        times.setdefault((row["what"], row["shape"], row["dtype"]), {})[row["implementation"]] = row["p50_ms"]
    ratios = {key: of["compiled"] / of["plain, compiled"] for key, of in times.items() if of.get("compiled") and of.get("plain, compiled")}
    if not ratios:
        return f"token_mix, every row: at most {RULE}× the time of plain PyTorch, compiled", "", None
    slower = [f"{' '.join(key)} {_times(ratio)}" for key, ratio in ratios.items() if ratio > RULE]
    text = "; ".join(slower) or f"{_times(max(ratios.values()))} at most, {len(ratios)} rows"
    return f"token_mix, every row: at most {RULE}× the time of plain PyTorch, compiled", text, not slower


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
    yield _rule(rows)
    for what, published, early, late in (("forward", 17, 3, 1.3), ("forward+backward", 10, 2.5, 1.2)):
        yield _operator(rows, what, "published", (1, 2), published)
        yield _operator(rows, what, "plain, compiled", (1, 2), early)
        yield _operator(rows, what, "plain, compiled", (3, 4), late)
    of = dict(section="operator", name="token_mix", what="forward", dtype="bfloat16", implementation="compiled", batch="128")
    share = max([row["share_of_limit"] for row in _find(rows, **of) if row["share_of_limit"]], default=math.nan)
    yield "token_mix forward, bf16, batch 128, the best stage: at least 30 % of the limit", f"{share:.0%}", _met(share, 0.3)

    def network(what: str, implementation: str, column: str) -> float:
        of = dict(section="network", what=what, shape=SQUARE, dtype="bfloat16", implementation=implementation)
        return _number(rows, column, **of)

    for ours in ("compiled", "eager"):  # published is eager
        memory = network("training step", ours, "peak_mib") / network("training step", "published", "peak_mib")
        yield f"peak memory of a training step, bf16, {ours}: at most 0.5× published", _times(memory), _met(memory, 0.5, at_most=True)
    for what, other, goal in (
        ("inference", "ConvNeXt-T, compiled", 1),
        ("inference", "Swin-T, compiled", 1),
        ("training step", "Swin-T, compiled", 1),
        ("training step", "plain, compiled", 1.5),
    ):
        ratio = network(what, "compiled", "images_per_s") / network(what, other, "images_per_s")
        yield f"{what}, bf16, images/s against {other}: at least {goal}×", _times(ratio), _met(ratio, goal)
    for what in ("inference", "training step"):
        yield from _linear(rows, what, "bfloat16", "compiled")
    for row in _find(rows, section="first step"):
        met = row["note"] == "0" if row["note"] != "no tuned table" else None
        yield "benchmarks launched in the first step after import, with a tuned table: none", row["note"], met


def _cpu(rows: list[Row]) -> Iterator[tuple[str, str, bool | None]]:
    yield _rule(rows)
    for what, goal in (("inference", 2.1), ("training step", 3.4)):
        of = dict(section="network", what=what, shape=SQUARE, dtype="float32")
        speedup = _number(rows, "speedup", **of, implementation="compiled")
        yield f"{what}, float32, 224²: at least {goal:g}× published", _times(speedup), _met(speedup, goal)
        ratio = speedup / _number(rows, "speedup", **of, implementation="eager")
        yield f"{what}, float32, 224²: compiled never slower than eager", _times(ratio), _met(ratio, 1)
    yield from _linear(rows, "inference", "float32", "eager")


def judge(rows: list[Row]) -> list[tuple[str, str, str]]:
    """Judge each target: what was measured, and whether it is met."""
    cpu = "threads" in rows[0]["device"]
    words = {True: "yes", False: "**no**", None: "not measured"}
    return [(target, "" if met is None else text, words[met]) for target, text, met in (_cpu(rows) if cpu else _gpu(rows))]
