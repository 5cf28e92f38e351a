"""Images: which files they are, how they are opened, what a model takes of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from timm.data import resolve_model_data_config
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key
from torch import nn

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for broken files of the various formats


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image in RGB and upright, as viewers show it; raises what Pillow raises."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def find_images(places: Sequence[str]) -> list[Path]:
    """The images that files, folders (with all folders inside) and glob patterns name, each once, in order.

    Raises:
        FileNotFoundError: a place names no image.
    """
    endings = get_img_extensions(as_set=True)
    found: list[Path] = []
    for place in places:
        matches = [Path(place)] if Path(place).exists() else [Path(file) for file in glob.glob(place, recursive=True)]
        images = [file for match in matches for file in ([match] if match.is_file() else match.rglob("*"))]
        named = set(matches)  # whatever their endings
        images = [file for file in images if file.is_file() and (file in named or file.suffix.lower() in endings)]
        if not images:
            raise FileNotFoundError(
                f"there is no image {place}: give files, folders or patterns such as 'photos/*.jpg'; in folders, endings tell "
                f"images: {' '.join(sorted(endings))}"
            )
        found += sorted(images, key=lambda file: natural_key(str(file)))
    return list(dict.fromkeys(found))


def channels(model: nn.Module) -> int:
    """Channels of the images that a model takes."""
    return int(getattr(model, "in_chans", 3))


def picture_config(model: nn.Module) -> dict[str, Any]:
    """timm's data configuration of a model that takes pictures.

    Raises:
        ValueError: the model takes images of other than three channels.
    """
    config = resolve_model_data_config(model)
    if config["input_size"][0] != 3:
        raise ValueError(f"pictures have 3 channels, and this {type(model).__name__} takes images of {config['input_size'][0]}")
    return config
