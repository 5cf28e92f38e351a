"""The steps that are jobs of the benchmark: python -m gpu.measure STEP --file results.csv

Every job is written to the file as soon as it is measured, and not measured again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from pathlib import Path

import jobs
import limits
import operators
import report
import run
import timing
import torch
from about import MODE, MODEL, describe
from jobs import OTHERS, OTHERS_QUICK, SQUARE, SQUARE_QUICK, Bench, Job, chosen, name_of
from operators import Row

BF16, FP32 = torch.bfloat16, torch.float32
STAGES = (3, 1, 2, 4)  # by their share of ATMNet-T's time, of which stage 3 has more than half
DRY_STAGES = (3,)
IMPLEMENTATIONS = ("compiled", "plain, compiled", "Swin-T, compiled", "ConvNeXt-T, compiled")
DIRECTIONS = ("inference", "training step")
DRY_MODEL = "atmnet_xt"


def correctness(bench: Bench, dry: bool) -> list[Job]:
    """Result and gradients of every operator at real shapes, by the tests' rule."""
    found = []
    for operator in [*chosen("token_mix"), *chosen()]:
        for (size, batch), stage in itertools.product((SQUARE_QUICK if dry else SQUARE).items(), DRY_STAGES if dry else STAGES):
            shape = jobs.stages(bench.model, batch, size)[stage - 1]
            title = f"correctness of {operator.name}, {shape}, {name_of(BF16)}"
            found.append(Job(title, BF16, functools.partial(judge, operator, shape, BF16, bench.device)))
    return found


def judge(operator: operators.Operator, shape: limits.Tokens, dtype: torch.dtype, device: torch.device, _: limits.Ceilings) -> list[Row]:
    timing.clean_slate(device)
    inputs = operator.inputs(shape.shape, dtype, device)
    wrong = operators.check(operator, shape.shape, {"eager": operator.row.function}, inputs)
    about = dict(section="correctness", name=operator.name, what="result and gradients", shape=str(shape), dtype=name_of(dtype))
    return [about | dict(batch=shape.B, implementation="eager", note=wrong.get("eager", "right"))]


def token_mix(bench: Bench, dry: bool) -> list[Job]:
    square, stages = (SQUARE_QUICK, DRY_STAGES) if dry else (SQUARE, STAGES)
    return bench.operator_jobs(chosen("token_mix"), BF16, square, stages)


def networks(bench: Bench, dry: bool) -> list[Job]:
    """One implementation at a time, so that what is cut short has the most important ones."""
    square, found = SQUARE_QUICK if dry else SQUARE, []
    for implementation in IMPLEMENTATIONS:
        for what in DIRECTIONS:
            found += bench.network_jobs(BF16, square, what, implementation)
    return found


def sizes(bench: Bench, dry: bool) -> list[Job]:
    """Jobs in float32, and of larger images."""
    square, others, stages = (SQUARE_QUICK, OTHERS_QUICK, DRY_STAGES) if dry else (SQUARE, OTHERS, STAGES)
    found = bench.operator_jobs(chosen("token_mix"), FP32, square, stages)
    for dtype, at in ((FP32, square), (BF16, others)):
        for what in DIRECTIONS:
            found += bench.network_jobs(dtype, at, what, "compiled")
    return found


STEPS = {"correctness": correctness, "token_mix": token_mix, "networks": networks, "sizes": sizes}


def plan(step: str, dry: bool) -> tuple[Bench, list[Job]]:
    bench = Bench(DRY_MODEL, torch.device("cpu"), MODE, 0, 0) if dry else Bench(MODEL, torch.device("cuda"))
    return bench, STEPS[step](bench, dry)


def verdict(todo: list[Job], file: Path) -> tuple[str, bool]:
    """Tell in one line what ``file`` says of these jobs: what is wrong, how many are right, and the times that say the most; and whether
    something is wrong."""
    titles = {job.title for job in todo}
    rows = [row for row in report.read(file) if row["job"] in titles] if file.is_file() else []
    parts = [f"{row['name']} {row['shape']}: {row['note']}" for row in rows if run.went_wrong(row)]
    if checked := [row for row in rows if row["section"] == "correctness"]:
        parts.append(f"{sum(row['note'] == 'right' for row in checked)} of {len(todo)} are right")
    mixers = [row for row in rows if (row["what"], row["implementation"]) == ("forward+backward", "compiled") and row["p50_ms"]]
    if mixers:
        parts.append("ms forward+backward, compiled: " + ", ".join(f"{row['p50_ms']:.3g} ({row['shape']})" for row in mixers))
    if timed := [row for row in rows if row["images_per_s"]]:
        several = {(row["shape"], row["dtype"]) for row in timed}
        groups: dict[str, list[str]] = {}
        for row in timed:
            where = f" {row['shape']} {row['dtype']}" if len(several) > 1 else ""
            groups.setdefault(row["implementation"] + where, []).append(f"{row['what']} {row['images_per_s']:.4g}")
        parts.append("images/s: " + "; ".join(f"{name}: {', '.join(speeds)}" for name, speeds in groups.items()))
    return "; ".join(parts), any(map(run.went_wrong, rows))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="what is measured")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU; no time means anything")
    args = parser.parse_args(arguments)
    if args.dry_run:
        timing.CACHE, timing.WARM_UP, timing.TURNS = 2**20, 0, 2
        torch.compile = lambda target, **_: target  # it would take minutes
    bench, todo = plan(args.step, args.dry_run)
    run.measure(todo, bench.device, args.file, describe(bench.device, bench.model, MODE, args.commit))
    result, wrong = verdict(todo, args.file)
    print(result)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
