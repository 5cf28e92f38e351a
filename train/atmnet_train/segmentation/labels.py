"""Labels of pixels as their file has them, whatever Pillow makes of it."""

from pathlib import Path

import numpy as np
from atmnet.images import ImageError, opened, upright

DEPTH_AT = 24  # the byte of a PNG that tells its bits per sample
UNLABELLED, VOID = 0, 255  # both are ignored: 0 as in ADE20K, 255 as elsewhere in the field


def read_labels(path: Path) -> np.ndarray:
    """`[H, W]` as bytes, turned upright like images; what is ignored is 0.

    Raises:
        ImageError: it cannot be read, or holds no labels.
    """
    with opened(path) as image:
        if image.format != "PNG":
            raise ImageError(f"it is a {image.format}, whatever its name; labels are PNG, which changes none of them")
        if image.mode not in ("1", "L", "P"):
            raise ImageError(f"it is an image of mode {image.mode}, not of one channel of 8 bits")
        labels = np.array(upright(image)).astype(np.uint8)
        if image.mode == "L":  # grey of 2 and 4 bits comes stretched to 255
            with path.open("rb") as file:
                depth = file.read(DEPTH_AT + 1)[DEPTH_AT]
            labels //= 255 // (2**depth - 1)
    labels[labels == VOID] = UNLABELLED
    return labels
