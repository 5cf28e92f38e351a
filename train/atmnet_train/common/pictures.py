"""Pictures that every program draws: a grid of images with captions, and what trackers are shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from einops import rearrange
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .files import write_atomically

COLUMNS = 6
WIDTH = 1.9  # of an image in a grid, in inches
CAPTION = 0.36  # height of two lines, in inches
MOST = 24  # images of a grid: what still can be looked at one by one


@dataclass
class Example:
    """An image of bytes, as NumPy and matplotlib have it, and at most two lines about it."""

    image: NDArray[Any]  # [H, W, 3]
    caption: str = ""


def to_bytes(image: Tensor, mean: Sequence[float] = (0.0,) * 3, std: Sequence[float] = (1.0,) * 3) -> NDArray[Any]:
    """Turns a normalised image `[3, H, W]` back into one that can be looked at."""
    values = rearrange(image.detach().float().cpu(), "c h w -> h w c").numpy() * np.asarray(std) + np.asarray(mean)
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=dpi))


def plain(text: Any) -> None:
    """Has a text of matplotlib taken as it is: in names, dollars are no formulas, and what is no character is shown as its escape."""
    text.set_parse_math(False)
    text.set_text(text.get_text().encode(errors="backslashreplace").decode())


def draw_grid(path: Path, examples: Sequence[Example], title: str) -> None:
    shown = examples[:MOST]
    columns, rows = min(COLUMNS, len(shown)), math.ceil(len(shown) / COLUMNS)
    tallest = max(min(2.0, example.image.shape[0] / example.image.shape[1]) for example in shown)
    cell = WIDTH * tallest + CAPTION + 0.08
    width, height = max(columns, 3) * WIDTH, rows * cell + 0.35
    figure = Figure(figsize=(width, height))
    plain(figure.text(0.5, 1 - 0.1 / height, title, ha="center", va="top", fontsize=9))
    for number, example in enumerate(shown):
        row, column = divmod(number, COLUMNS)
        top = height - 0.35 - row * cell - CAPTION
        place = (column * WIDTH + 0.04) / width, (top - WIDTH * tallest) / height, (WIDTH - 0.08) / width, WIDTH * tallest / height
        axes = figure.add_axes(place, anchor="N")
        axes.imshow(example.image)
        axes.set_axis_off()
        plain(axes.set_title(example.caption, fontsize=6.5, pad=2))
    save(figure, path, dpi=120)


def show_trackers(accelerator: Accelerator, pictures: Sequence[Path], step: int) -> None:
    """Shows pictures that are files to the trackers that take some. The main process alone calls it."""
    for tracker in accelerator.trackers:
        for path in pictures:
            pixels = np.asarray(Image.open(path).convert("RGB"))[None]
            if tracker.name == "tensorboard":
                tracker.log_images({f"pictures/{path.stem}": pixels}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({f"pictures/{path.stem}": pixels}, step=step)
