"""Draw where a token of a photograph reads: offsets-photo.png, which README and documentation show.

pip install scikit-image
PYTHONPATH=.:models:train python docs/assets/draw_offsets.py [--output output/photographs] [--epochs 10]

A small ATMNet is trained first, by the program and the recipe for few images: to tell from which of five photographs, and from which
quarter of it, a crop of 64 x 64 pixels comes. The photographs come inside the package scikit-image, whose `skimage.data` says of all five
that they are in the public domain or CC0.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import atmnet
import torch
from atmnet.offsets import collect
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from timm.data import create_transform

PHOTOGRAPHS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg")
SIZE, TRAIN, VAL = 64, 150, 10  # pixels of a crop; crops of each quarter
SHOWN = "chelsea.png"  # a cat, CC0 by Stefan van der Walt
AT = (0.385, 0.385)  # the token that is looked at: across and down
HEIGHT = 160  # of the photograph, whose crops have about this scale
SHOWN_STAGES = (2, 3, 4)
RED, BLUE = "#e0232a", "#1f5fd0"


def photograph(name: str) -> Image.Image:
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise SystemExit("the photographs come inside scikit-image: pip install scikit-image")
    return Image.open(Path(found.origin).with_name("data") / name).convert("RGB")


def write_crops(folder: Path) -> None:
    """`folder/{train,val}/<photograph>-<quarter>/<number>.png`."""
    draw = random.Random(0)
    for name in PHOTOGRAPHS:
        picture = photograph(name)
        for split, count in (("train", TRAIN), ("val", VAL)):
            for quarter in range(4):
                target = folder / split / f"{Path(name).stem}-{quarter}"
                target.mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    side = draw.uniform(0.35, 0.5) * min(picture.size)
                    x, y = (
                        (half + draw.random()) / 2 * (length - side)
                        for half, length in zip((quarter % 2, quarter // 2), picture.size, strict=True)
                    )
                    crop = picture.crop((round(x), round(y), round(x + side), round(y + side)))
                    crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(target / f"{number:03d}.png")


def train(data: Path, output: Path, epochs: int) -> None:
    program = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    ]
    program += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", str(torch.get_num_threads()), "-m", "atmnet_train.imagenet"]
    program += ["--config", "small", "--data-dir", str(data), "--output", str(output), "--img-size", str(SIZE), "--epochs", str(epochs)]
    program += ["--batch-size", "32", "--hflip", "0", "--report-to", "none", "--model-kwargs", "depths=(2,2,2,1)", "dims=(24,48,96,128)"]
    subprocess.run(program, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


@torch.no_grad()
def draw(output: Path, file: Path) -> None:
    """The photograph, about as large as its crops were in training, and over it the places where one token reads."""
    picture = photograph(SHOWN)
    model = atmnet.open_classifier(output).eval()
    height, width = HEIGHT, round(HEIGHT * picture.width / picture.height / 32) * 32
    transform = create_transform((3, height, width), crop_pct=1, interpolation="bicubic", crop_mode="squash")
    offsets = {name: offset[0] for name, offset in collect(model, transform(picture)[None]).items()}
    figure = Figure(figsize=(3.6 * (len(SHOWN_STAGES) + 1), 2.8), layout="constrained", facecolor="white")
    first, *others = figure.subplots(1, len(SHOWN_STAGES) + 1)
    for axes in (first, *others):
        axes.set_axis_off()
    first.imshow(picture, extent=(0, 1, 1, 0), aspect=picture.height / picture.width)
    first.set_title(f"the photograph, {height} × {width} pixels for the network", fontsize=9)
    first.plot(*AT, marker="*", markersize=15, color="gold", markeredgecolor="black")
    for axes, stage in zip(others, SHOWN_STAGES, strict=True):
        offset = next(offset for name, offset in offsets.items() if name.startswith(f"layer {stage}_"))
        draw_token(axes, picture.convert("L"), offset)
        axes.set_title(f"stage {stage}: {offset.shape[0]} × {offset.shape[1]} tokens", fontsize=9)
    figure.savefig(file, dpi=110)


def draw_token(axes: Axes, picture: Image.Image, offset: torch.Tensor) -> None:
    H, W = offset.shape[:2]
    row, column = int(AT[1] * H), int(AT[0] * W)
    axes.imshow(
        picture,
        cmap="gray",
        alpha=0.6,
        extent=(-0.5, W - 0.5, H - 0.5, -0.5),
        aspect=picture.height / picture.width * W / H,
        vmin=0,
        vmax=255,
    )
    axes.axhspan(row - 0.5, row + 0.5, color=RED, alpha=0.12, lw=0)
    axes.axvspan(column - 0.5, column + 0.5, color=BLUE, alpha=0.12, lw=0)
    along_w, along_h = offset[row, column].chunk(2)
    dots = {"s": 34, "alpha": 0.55, "linewidths": 0.4, "edgecolors": "white"}
    axes.scatter(column + along_w, torch.full_like(along_w, row), color=RED, **dots)
    axes.scatter(torch.full_like(along_h, column), row + along_h, color=BLUE, **dots)
    axes.plot(column, row, marker="*", markersize=11, color="gold", markeredgecolor="black", markeredgewidth=0.7)
    axes.set(xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/photographs"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name("offsets-photo.png"))
    args = parser.parse_args()
    if not (args.output / "run/best.safetensors").exists():
        write_crops(args.output / "crops")
        train(args.output / "crops", args.output / "run", args.epochs)
    draw(args.output / "run", args.file)


if __name__ == "__main__":
    main()
