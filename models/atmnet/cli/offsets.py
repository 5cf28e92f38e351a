"""python -m atmnet offsets: where the tokens of images look."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from ..images import ImageError, describe, find_images, open_image, upright_size
from ..offsets import Histograms, collect, draw_histograms, draw_panel, layers, page_entry, write_page
from ..offsets.draw import new_figure
from ..offsets.images import View
from ..tasks import about
from ..weights.opening import open_model
from .arguments import add_image_size, add_model, add_running, whole_number

HELP = "where the tokens of images look: panels, histograms, and a page to click through"


def place(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+),(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be two pixel numbers x,y such as 320,240, got {text!r}")
    return int(found[1]), int(found[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model(parser, "untrained, of --model")
    add("--images", nargs="+", required=True, metavar="IMAGE", help="files, folders, or patterns such as 'photos/**/*.jpg'")
    add("--out", type=Path, required=True, metavar="FOLDER", help="for panels/*.png, histograms.png, histograms.npz and offsets.html")
    add_image_size(parser, "images are resized to (default: the model's)")
    add(
        "--at",
        type=place,
        action="append",
        default=[],
        metavar="X,Y",
        help="look at the token at this pixel of the image in its own size, 0,0 at the upper left; may be repeated (default: the centre)",
    )
    add("--panels", type=whole_number(0), default=16, metavar="N", help="panels (and the page) for the first N images only (default: 16)")
    add("--html", action="store_true", help="also write offsets.html, one file to click through the images of the panels")
    add_running(parser)


@dataclass
class Look:
    """Work of the command: what is seen and written, a batch at a time."""

    model: nn.Module
    view: View
    args: argparse.Namespace
    histograms: Histograms = field(default_factory=Histograms)
    entries: list[dict[str, Any]] = field(default_factory=list)  # of the page
    unreadable: list[str] = field(default_factory=list)
    panels: int = 0

    def batch(self, numbered: Sequence[tuple[int, Path]]) -> None:
        read = []
        for number, file in numbered:
            try:
                image = open_image(file)
                read.append((number, file, image.size, self.view.pixels(image)))
            except Exception as error:  # of reading, or of resizing
                self.unreadable.append(f"{file} ({describe(error)})")
        if not read:
            return
        images = torch.stack([pixels for *_, pixels in read])
        offsets = collect(self.model, images.to(next(self.model.parameters())))
        self.histograms.update(offsets)
        for i, (number, file, size, pixels) in enumerate(read):
            if number < self.args.panels:
                self.panel(number, file, size, self.view.picture(pixels), {layer: offset[i] for layer, offset in offsets.items()})

    def panel(self, number: int, file: Path, size: tuple[int, int], picture: Image.Image, offsets: dict[str, Tensor]) -> None:
        width, height = size  # on disk, where --at counts
        tokens = [((x + 0.5) / width, (y + 0.5) / height) for x, y in self.args.at] or [(0.5, 0.5)]
        draw_panel(self.args.out / "panels" / f"{number + 1:03d}-{file.stem}.png", picture, offsets, tokens)
        self.panels += 1
        if self.args.html:
            self.entries.append(page_entry(file.name, picture, offsets))

    def finish(self, title: str) -> list[str]:
        """Write what is of all images, and say what was written."""
        out = self.args.out
        self.histograms.save(out / "histograms.npz")
        draw_histograms(out / "histograms.png", self.histograms)
        said = [f"{out / 'histograms.png'}, {out / 'histograms.npz'}: {self.histograms.images} in all"]
        more = "; --panels for more" if self.panels < self.histograms.images else ""
        said.append(f"{out / 'panels'}: {self.panels} of them{more}")
        if self.entries:
            written = write_page(out / "offsets.html", title, self.entries)
            said.append(f"{out / 'offsets.html'}: {len(self.entries)} of them, {written / 1e6:.1f} MB")
        return said


def check_places(places: Sequence[tuple[int, int]], files: Sequence[Path]) -> None:
    """Raises ValueError for a pixel that an image does not have."""
    for file in files if places else []:
        try:
            width, height = upright_size(file)
        except ImageError:
            continue  # it is told of when all are read
        for x, y in places:
            if x >= width or y >= height:
                raise ValueError(
                    f"--at {x},{y} is outside {file}, which is {width} x {height} pixels: x is 0 to {width - 1}, y 0 to {height - 1}"
                )


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if args.html and not args.panels:
        parser.error("--html shows the images of the panels, and --panels 0 leaves none")
    console = Console(markup=False, highlight=False, soft_wrap=True)
    try:
        new_figure(1, 1)  # whether any can be drawn
        files, passed_over = find_images(args.images)
        check_places(args.at, files[: args.panels])
        model = open_model(args.checkpoint, args.model, args.ema, args.swap).to(args.device)
        names, view = list(layers(model)), View(model, args.img_size)
        (args.out / "panels").mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # RuntimeError: of a device that is not there
        parser.error(str(error))
    if args.checkpoint is None:
        console.print("no --checkpoint: these are the offsets of an untrained model, all close to 0", style="yellow")
    look = Look(model, view, args)
    height, width = view.size
    console.print(f"images: {len(files)}, resized to {height} x {width}; offset layers: {', '.join(names)}")
    if passed_over:
        print(f"passed over: {passed_over}", file=sys.stderr)
    numbered = list(enumerate(files))
    try:
        for first in track(range(0, len(files), args.batch_size), "looking", console=Console(stderr=True), transient=True):
            look.batch(numbered[first : first + args.batch_size])
    except (ValueError, OSError) as error:  # offsets that are not finite, a full disk
        parser.error(str(error))
    for unreadable in look.unreadable:
        print(f"left out, cannot be read: {unreadable}", file=sys.stderr)
    if not look.histograms.images:  # none could be read
        return 1
    untrained = "an untrained " if args.checkpoint is None else ""
    try:
        said = look.finish(f"Where the tokens of {untrained}{about(model).name} look")
    except OSError as error:
        parser.error(str(error))
    console.print("\n".join(said))
    return 1 if look.unreadable else 0
