"""Test whether our kernels train as plain PyTorch does: python -m gpu.loss_curve --file loss-curve.csv

200 updates of ATMNet-xT in bfloat16 by autocast, compiled: ours, plain PyTorch from the same weights on the same images, and plain PyTorch
once more from another seed. Ours and plain round differently, so their losses drift apart; by less than another seed does, or something is
wrong. A curve that the file has is not made again.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import atmnet
import torch
from published import plain
from torch import Tensor, nn

from atm_triton.files import replaced

OURS, PLAIN, OTHER = "ours", "plain", "plain, another seed"
CLASSES, WINDOW = 10, 20  # updates that a loss is averaged over before it is compared
MODEL = dict(depths=(2, 2, 4, 2), num_classes=CLASSES)  # atmnet_xt
DRY_MODEL = dict(depths=(1, 1, 1, 1), dims=(16, 16, 16, 16), num_classes=CLASSES)


def batches(seed: int, updates: int, batch: int, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Noisy gratings, whose class is their direction."""
    generator = torch.Generator(device).manual_seed(seed)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size, device=device)] * 2, indexing="ij")
    for _ in range(updates):
        labels = torch.randint(CLASSES, (batch,), generator=generator, device=device)
        angle, phase = (labels * torch.pi / CLASSES)[:, None, None], 6.3 * torch.rand(batch, 1, 1, generator=generator, device=device)
        gratings = torch.sin(0.4 * size * (x * angle.cos() + y * angle.sin()) + phase)  # of 16 pixels
        yield gratings[:, None] + 0.3 * torch.randn(batch, 3, size, size, generator=generator, device=device), labels


def losses(model: nn.Module, seed: int, updates: int, batch: int, size: int, device: torch.device) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
    found = []
    for images, labels in batches(seed, updates, batch, size, device):
        with torch.autocast(device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        warm_up.step()
        found.append(loss.detach())
    return torch.stack(found).tolist()


def gap(a: list[float], b: list[float]) -> float:
    """The mean distance of two curves, each averaged over a window that moves along."""
    window = min(WINDOW, len(a))
    smooth_a, smooth_b = (torch.tensor(curve).unfold(0, window, 1).mean(1) for curve in (a, b))
    return (smooth_a - smooth_b).abs().mean().item()


def read(file: Path, updates: int) -> dict[str, list[float]]:
    """The curves that are there already; none of another length."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [float(row[name]) for row in rows] for name in rows[0] if name != "update"} if len(rows) == updates else {}


def write(file: Path, curves: dict[str, list[float]]) -> None:
    with replaced(file) as partial, partial.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["update", *curves])
        writer.writerows([update, *(f"{loss:.5g}" for loss in row)] for update, row in enumerate(zip(*curves.values(), strict=True), 1))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true", help="a tiny network on the CPU")
    args = parser.parse_args(arguments)
    device = torch.device("cpu" if args.dry_run else "cuda")
    how = dict(updates=3, batch=2, size=32) if args.dry_run else dict(updates=200, batch=64, size=224)

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return atmnet.ATMNet(**(DRY_MODEL if args.dry_run else MODEL)).to(device)

    ours = network(0)
    reference = plain(ours)
    curves = read(args.file, how["updates"]) if args.file.is_file() else {}

    def train(name: str, model: nn.Module, seed: int) -> None:
        if name not in curves:
            curves[name] = losses(model, seed, **how, device=device)
            write(args.file, curves)
        print(f"{name}: loss {curves[name][0]:.3f} to {curves[name][-1]:.3f}", flush=True)

    train(OURS, torch.compile(ours), 0)
    compiled = torch.compile(reference)
    train(PLAIN, compiled, 0)
    reference.load_state_dict(plain(network(1)).state_dict())  # the same module, so that nothing is compiled again
    train(OTHER, compiled, 1)
    apart, seeds = gap(curves[OURS], curves[PLAIN]), gap(curves[PLAIN], curves[OTHER])
    print(f"the losses of ours and plain are {apart:.4f} apart, those of two plain runs that differ in the seed {seeds:.4f}")
    return int(not apart <= seeds)


if __name__ == "__main__":
    sys.exit(main())
