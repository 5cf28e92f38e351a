"""Side by side in one run: ATMNet as the published formulation, eager and compiled, inference and a training step.

python bench/run.py                       the README's table: ATMNet-T, 224 x 224, batch 4, float32, on the CPU
python bench/run.py --device cuda --batch 128 --dtype bfloat16

Refuses to time anything unless both formulations agree. Writes bench/results/<device>-<date>-<model>-<dtype>-<size>-batch<N>.csv and
prints the table as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import atmnet
import timm
import torch
from published import assert_same, published
from torch import nn

import atm_triton

RESULTS = Path(__file__).parent / "results"


def quantiles(steps: dict[str, Callable[[], None]], device: torch.device, seconds: float) -> dict[str, tuple[float, float, float]]:
    """p20, p50 and p80 in milliseconds. The candidates take turns, so that a machine that slows down slows them all."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            step()
    end = time.perf_counter() + seconds * len(steps)
    while time.perf_counter() < end or len(times[next(iter(steps))]) < 5:
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: (statistics.quantiles(t, n=5)[0], statistics.median(t), statistics.quantiles(t, n=5)[3]) for name, t in times.items()}


def inference(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        with torch.no_grad():
            model(images)

    return step


def training(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    target = torch.arange(images.shape[0], device=images.device) % 1000

    def step() -> None:
        nn.functional.cross_entropy(model(images).float(), target).backward()
        model.zero_grad(set_to_none=True)

    return step


def peak_memory(step: Callable[[], None], device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def commit() -> str:
    """What was measured; a plus sign: with changes that are not committed."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:  # no git here
        described = ""
    return described or f"release {atm_triton.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="atmnet-t")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=20, help="for each candidate of each comparison")
    args = parser.parse_args()

    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    ours = timm.create_model(atmnet.canonical_name(args.model)).to(args.device, dtype)
    theirs = published(ours)
    images = torch.randn(args.batch, 3, args.img_size, args.img_size, device=args.device, dtype=dtype)
    assert_same(ours, theirs, images)

    rows = []
    for what, make, train in (("inference", inference, False), ("training step", training, True)):
        torch._dynamo.reset()
        models = {"published": theirs, "eager": ours, "compiled": torch.compile(ours, fullgraph=True)}
        steps = {name: make(model.train(train), images) for name, model in models.items()}
        measured = quantiles(steps, args.device, args.seconds)
        for name, (p20, p50, p80) in measured.items():
            memory = peak_memory(steps[name], args.device)
            speedup = measured["published"][1] / p50
            rows.append(
                dict(model=args.model, dtype=args.dtype, batch=args.batch, size=args.img_size, what=what, implementation=name)
                | dict(p20_ms=round(p20, 2), p50_ms=round(p50, 2), p80_ms=round(p80, 2), images_per_s=round(1e3 * args.batch / p50, 1))
                | dict(speedup=round(speedup, 2), peak_mb=memory and round(memory, 1))
            )

    cpu = platform.processor() or platform.machine()
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else f"{cpu}, {torch.get_num_threads()} threads"
    about = dict(device=device, torch=torch.__version__, triton=atm_triton.backend_info().triton, commit=commit())
    RESULTS.mkdir(exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") if args.device.type == "cuda" else "cpu"
    file = RESULTS / f"{slug}-{datetime.date.today()}-{args.model}-{args.dtype}-{args.img_size}-batch{args.batch}.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], *about])
        writer.writeheader()
        writer.writerows(row | about for row in rows)

    print(f"{args.model}, {args.img_size} x {args.img_size}, batch {args.batch}, {args.dtype}, on {device}, torch {torch.__version__}\n")
    print("| | published | eager | compiled |\n|---|---|---|---|")
    for what in dict.fromkeys(row["what"] for row in rows):
        cells = [f"{row['p50_ms']:.0f} ms ({row['speedup']:.1f}×)" for row in rows if row["what"] == what]
        print(f"| {what} | {' | '.join(cells)} |")
    print(f"\nmedians; all quantiles in {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")


if __name__ == "__main__":
    main()
