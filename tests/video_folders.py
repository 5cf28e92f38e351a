"""Labelled videos that differ in their motion alone, for the tests of train/video.py."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageChops
from video_files import write_video

SIDE = 32


def moving(step: int, start: int, frames: int = 8) -> list[Image.Image]:
    """A bright bar that moves so many pixels a frame to the right, and comes in again where it left."""
    bar = Image.new("RGB", (SIDE, SIDE), (20, 20, 20))
    bar.paste((230, 200, 160), (0, 4, 8, 28))
    return [ImageChops.offset(bar, start + step * number, 0) for number in range(frames)]


def write_folders(root: Path, each: int = 4) -> Path:
    """``root/{train,val}/{left,right}/N.mp4``, as many of each."""
    for split, shift in (("train", 0), ("val", 3)):
        for name, step in (("left", -4), ("right", 4)):
            (root / split / name).mkdir(parents=True)
            for number in range(each):
                write_video(root / split / name / f"{number}.mp4", moving(step, 7 * number + shift))
    return root
