"""Machine code of every launch configuration on every target, as a table whose changes show in a diff.

python kernels_tests/machine_code.py                         all of it: half an hour on two cores
python kernels_tests/machine_code.py --only token_mix_dx     the rows of kernels with this in their name; the others stay

Writes bench/results/machine-code-triton-<version>.csv. test_aot.py compares every kernel's first configuration with it.
"""

from __future__ import annotations

import argparse
import csv
import functools
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import triton
from aot import TARGETS, Resources, resources
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from variants import STAGES, Variant, variants

TABLE = Path(__file__).parents[1] / f"bench/results/machine-code-triton-{triton.__version__.rpartition('.')[0]}.csv"
COLUMNS = {  # instructions, by what their names begin with
    "loads": r"LDG|(global|buffer)_load",
    "wide_loads": r"LDG\S*\.128|(global|buffer)_load_dwordx4",
    "stores": r"STG|(global|buffer)_store",
    "atomics": r"RED|ATOM|(global|buffer)_atomic",
    "matrix_products": r"HMMA|HGMMA|UTC\w*MMA|v_mfma",
    "barriers": r"BAR|s_barrier",
}
Row = dict[str, str]


def identity(stage: str, target: int | str, variant: Variant) -> Row:
    configuration = " ".join(f"{name}={value}" for name, value in variant.config.items())
    where = f"sm_{target}" if isinstance(target, int) else target
    return dict(kernel=variant.name, stage=stage, target=where, dtype=variant.dtype, configuration=configuration)


def issued(stage: str, variant: Variant, use: Resources) -> str:
    """Instructions that threads issue for each token and channel: what bounds the mixer beside the L1 cache, where it is many.

    Out of shared memory, the rows of zeros count as tokens, and lines are one piece.
    """
    C, S, side = STAGES[stage]
    has, groups = variant.config, C // S
    if not use.code:
        return ""
    if variant.name.startswith("token_mix_gather_lines"):
        values = has["BLOCK_L"] * has["BLOCK_Q"] * has["BLOCK_E"] * has["CHANNELS"]
        return f"{use.issued_around() * 32 * has['num_warps'] / values:.1f}"
    if variant.name == "token_mix_gather":
        trips, tokens, programs = has["TOKENS"] // has["BLOCK_N"], has["TOKENS"], triton.cdiv(groups, has["BLOCK_G"])
    elif variant.name.startswith("token_mix_doffset"):
        trips, tokens, programs = 1, has["BLOCK_N"], triton.cdiv(groups, has["BLOCK_G"])
    else:
        return ""
    return f"{use.issued(trips) * 32 * has['num_warps'] * programs / (tokens * C):.0f}"


def row(stage: str, target: int | str, variant: Variant, use: Resources) -> Row:
    found: dict[str, object] = dict(
        registers=use.registers,
        spills=use.spills,
        shared=use.shared,
        occupancy=f"{use.occupancy(target, variant.config['num_warps']):.0%}",
        instructions=sum(use.instructions.values()),
        issued=issued(stage, variant, use),
    )
    found |= {name: use.count(pattern) for name, pattern in COLUMNS.items()}
    return identity(stage, target, variant) | {name: str(value) for name, value in found.items()}


def key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("kernel", "stage", "target", "dtype", "configuration"))


def read() -> dict[tuple[str, ...], Row]:
    """Rows of the table; empty for a Triton that has none."""
    if not TABLE.is_file():
        return {}
    with TABLE.open(newline="") as file:
        return {key(row): row for row in csv.DictReader(file)}


def write(rows: Iterable[Row]) -> None:
    rows = sorted(rows, key=key)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(max(rows, key=len)), lineterminator="\n")  # rows of a smaller table may lack columns
        writer.writeheader()
        writer.writerows(rows)


@functools.cache
def everything() -> list[tuple[str, int | str, Variant]]:
    wanted = [(stage, target) for target in TARGETS for stage in STAGES]
    return [(stage, target, variant) for stage, target in wanted for variant in variants(stage, "bf16", target, candidates=True)]


def compile_number(number: int) -> Row:
    """Compile one of ``everything`` by its number: a process cannot send a kernel to another."""
    stage, target, variant = everything()[number]
    return row(stage, target, variant, resources(variant.compile(target)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help="kernels with TEXT in their name")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    console = Console(soft_wrap=True)
    wanted = [number for number, (_, _, variant) in enumerate(everything()) if args.only in variant.name]
    rows = [row for row in read().values() if args.only not in row["kernel"]]
    columns = TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn()
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool, Progress(*columns, console=console) as bar:
        for made in bar.track(pool.map(compile_number, wanted), total=len(wanted), description="compiling"):
            rows.append(made)
            if made["spills"] != "0":
                console.print(f"{made['spills']} bytes spilled: {', '.join(key(made))}", highlight=False)
    write(rows)
    console.print("wrote", TABLE, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
