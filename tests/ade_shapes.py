"""Pictures of shapes with their annotations, in ADE20K's layout."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ["ground", "disc", "square"]  # labels 1, 2, 3
COLOURS = {0: (128, 128, 128), 1: (60, 150, 70), 2: (220, 60, 50), 3: (50, 70, 220)}


def draw_pair(rng: np.random.Generator, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """A disc and a square on the ground; the uppermost rows are labelled 0."""
    labels = Image.new("L", (width, height), 1)
    draw = ImageDraw.Draw(labels)
    draw.rectangle((0, 0, width, 7), fill=0)
    for label, shape, left in ((2, draw.ellipse, 2), (3, draw.rectangle, width // 2)):
        size = int(rng.integers(18, 26))
        x, y = left + int(rng.integers(0, 8)), int(rng.integers(10, height - size))
        shape((x, y, x + size, y + size), fill=label)
    table = np.array([COLOURS[label] for label in range(4)])
    pixels = table[np.array(labels)] + rng.integers(-25, 26, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), labels


def write_ade(root: Path, training: int = 4, validation: int = 3, width: int = 80, height: int = 64) -> Path:
    """`training` images, and `validation` others, of which the last is larger."""
    rng = np.random.default_rng(0)
    for split, count in (("training", training), ("validation", validation)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            more = 20 if split == "validation" and number == count - 1 else 0
            image, labels = draw_pair(rng, width + more, height + more)
            image.save(root / "images" / split / f"{split}_{number}.jpg", quality=95)
            labels.save(root / "annotations" / split / f"{split}_{number}.png")
    return root
