"""The steps that are training programs on generated data: python -m gpu.training STEP --work FOLDER

The process becomes `accelerate launch`; what the program has printed and written is read once it has ended, however it did.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).parents[2]
COMMON = "--no-tune --report-to none --log-interval 1"
TINY = "--model-kwargs depths=(1,1,1,1) dims=(16,32,48,64) --workers 0"
SPEED = re.compile(r"(\d+)/\d+ loss .* (\d+) images/s · data wait (\d+)%")
FIRST = 3  # updates that compile kernels and start workers: their speed says nothing


@dataclass(frozen=True)
class Program:
    file: str  # in train/
    model: str
    batch: int
    updates: int
    shape: str  # of the images that the network gets
    flags: str
    dry_flags: str  # on top of the others: small enough for a CPU
    dry_size: tuple[int, int] = (96, 72)
    compiled: bool = False


IMAGENET = dict(file="imagenet.py", model="atmnet-b", batch=128, updates=30, shape="224x224")
IMAGENET |= dict(flags="--epochs 1 --warmup-epochs 0 --cooldown-epochs 0", dry_flags="--img-size 32 --lr 1e-4")
PROGRAMS = {
    "imagenet": Program(**IMAGENET),
    "imagenet-compile": Program(**IMAGENET, compiled=True),
    "coco": Program(
        file="coco.py",
        model="atmnet-t",
        batch=2,
        updates=10,
        shape="800x1067",
        flags="--detector mask-rcnn --epochs 1 --warmup-updates 0 --clip-grad 1 --pictures 0",
        dry_flags="--min-size 64 --max-size 96",
    ),
    "ade20k": Program(
        file="ade20k.py",
        model="atmnet-t",
        batch=4,
        updates=10,
        shape="512x512",
        flags="--head semantic-fpn --iterations 10 --eval-interval 10 --pictures 0",
        dry_flags="--crop-size 64 --iterations 2 --eval-interval 2",
    ),
}


def sized(program: Program, dry: bool) -> tuple[int, int]:
    """Images in a batch, and updates."""
    return (2, 2) if dry else (program.batch, program.updates)


def command(name: str, work: Path, dry: bool) -> list[str]:
    """`accelerate launch` of the program, as a user gives it."""
    program, (batch, _) = PROGRAMS[name], sized(PROGRAMS[name], dry)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no"]
    launch += [*("--mixed_precision no --cpu" if dry else "--mixed_precision bf16").split(), str(ROOT / "train" / program.file)]
    flags = [*COMMON.split(), *program.flags.split(), *(f"{program.dry_flags} {TINY}".split() if dry else [])]
    flags += ["--compile"] if program.compiled else []
    where = ["--data-dir", str(work / f"{name}-data"), "--output", str(work / f"{name}-run")]
    return [*launch, "--model", program.model, "--batch-size", str(batch), *flags, *where]


def rows(name: str, work: Path, log: str, dry: bool) -> list[Row]:
    """Rows of what is known of a run: of its speed the last line that it printed, if that is not of the first updates."""
    program, (batch, _) = PROGRAMS[name], sized(PROGRAMS[name], dry)
    if not (speeds := SPEED.findall(log)):
        return []
    steps, summary = work / f"{name}-run" / "steps.csv", work / f"{name}-run" / "summary.json"
    losses = [float(row["loss"]) for row in csv.DictReader(steps.open()) if row["lr"]]  # the last line may be cut off
    update, speed, wait = speeds[-1]
    row = dict(section="training", name=program.model.replace("-", "_"), what=f"{program.file}, {len(losses)} updates", batch=batch)
    row |= dict(shape="" if dry else program.shape, dtype="bfloat16", implementation="compiled" if program.compiled else "eager")
    if int(update) > FIRST:
        row |= dict(images_per_s=float(speed), note=f"data wait {wait} %, loss {losses[-1]:.3f}")
    else:
        row |= dict(note=f"too short for a speed, loss {losses[-1]:.3f}")
    if summary.is_file():
        row["peak_mib"] = json.loads(summary.read_text())["peak_memory_mib"]
    return [row]


def line(row: Row) -> str:
    speed = f"{row['images_per_s']:.0f} images/s, " if row.get("images_per_s") else ""
    memory = f"{row['peak_mib'] / 1024:.3g} GiB, " if row.get("peak_mib") else ""
    return f"{speed}{memory}{row['note']} after {row['what'].partition(', ')[2]}"


def main() -> None:
    from gpu import data  # here alone, for numpy and Pillow

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=PROGRAMS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    program, (batch, updates) = PROGRAMS[args.step], sized(PROGRAMS[args.step], args.dry_run)
    data.WRITE[program.file](args.work / f"{args.step}-data", batch * updates, *(program.dry_size if args.dry_run else ()))
    line = command(args.step, args.work, args.dry_run)
    print(*line, flush=True)
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
