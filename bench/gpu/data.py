"""Generated data sets in the layouts that the training programs read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from ade_shapes import write_ade  # as the tests write them
from coco_shapes import write_split
from PIL import Image

CLASSES, DIFFERENT, VALIDATION = 4, 256, 64  # of the classified photos


def photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Soft colours and noise: about as many bytes as an ImageNet photo of this size."""
    soft = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(soft, np.int16) + rng.integers(-16, 17, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_classes(root: Path, training: int, width: int = 500, height: int = 375) -> Path:
    """Write photos as ImageNet is unpacked. ``training`` photos, of which at most ``DIFFERENT`` differ: the others are links to them."""
    rng = np.random.default_rng(0)
    for split, count, different in (("train", training, min(training, DIFFERENT)), ("val", min(training, VALIDATION), VALIDATION)):
        for number in range(CLASSES):
            (root / split / f"class{number}").mkdir(parents=True)
        files = [root / split / f"class{number % CLASSES}" / f"{number}.jpg" for number in range(count)]
        for number, file in enumerate(files):
            if number < different:
                photo(rng, width, height).save(file, quality=90)
            else:
                os.link(files[number % different], file)
    return root


def write_objects(root: Path, training: int, width: int = 640, height: int = 480) -> Path:
    """Write photos as COCO; an object or two on every image."""
    for split, count, seed in (("train2017", training, 1), ("val2017", 2, 2)):
        write_split(root, split, count, seed, height, width, empty=False)
    return root


def write_scenes(root: Path, training: int, width: int = 683, height: int = 512) -> Path:
    """Write photos as ADE20K."""
    return write_ade(root, training, 2, width, height)


WRITE = {"imagenet.py": write_classes, "coco.py": write_objects, "ade20k.py": write_scenes}
