"""Image files of odd kinds, all of one scene: dark on the left, bright on the right, with a bright corner that tells how it is turned."""

from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 36


def scene() -> np.ndarray:
    """Grey from 0 to 1."""
    grey = np.tile(np.linspace(0, 0.5, WIDTH), (HEIGHT, 1))
    grey[:8, :8] = 1
    return grey


def write_turned(path: Path, orientation: int, **options: object) -> None:
    """The scene stored as a camera held that way stores it, with its EXIF orientation."""
    pixels = np.repeat((255 * scene()).round().astype(np.uint8)[..., None], 3, 2)
    if orientation == 2:
        pixels = pixels[:, ::-1]
    elif orientation == 4:
        pixels = pixels[::-1]
    elif orientation == 5:
        pixels = pixels.transpose(1, 0, 2)
    elif orientation == 7:
        pixels = pixels[::-1, ::-1].transpose(1, 0, 2)
    elif orientation > 2:
        pixels = np.rot90(pixels, {3: 2, 6: 1, 8: 3}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, **options)
