"""Images: which files they are, how they are opened, what a model takes of them."""

from __future__ import annotations

import glob
import math
import os
import re
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image
from timm.data import resolve_model_data_config
from torch import nn

UNDECODED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow tells these, but needs somebody else's decoder
PROGRAMS = {"EPS"}  # which Pillow gives to Ghostscript
HIDDEN = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}  # of other systems, beside names with a dot in front
LARGEST = 2**14  # pixels of a side that a network takes
LONGEST = 250  # sides to one: with its shorter side resized to 256, an image of 1 x 65500 pixels takes 12 GB

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # upright, by EXIF's orientation
SAYING_TURNS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where Pillow keeps that

File = str | os.PathLike[str] | BinaryIO


class ImageError(ValueError):
    """An image that cannot be read; the message says why in one line."""


@cache
def formats() -> tuple[str, ...]:
    """Formats that Pillow decodes itself, the usual ones first."""
    Image.preinit()
    Image.init()
    return tuple(name for name in Image.ID if name not in UNDECODED | PROGRAMS)


@cache
def endings() -> frozenset[str]:
    """The endings that tell images in folders, in lower case."""
    wanted = {*formats(), "MPO"}  # which is opened as JPEG
    return frozenset(ending for ending, name in Image.EXTENSION.items() if name in wanted)


def describe(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}".removesuffix(": ")


@contextmanager
def opened(file: File) -> Iterator[Image.Image]:
    """The image as Pillow opens it.

    Raises:
        ImageError: whatever goes wrong, here or within the ``with`` block: of files that are damaged, Pillow raises nearly anything.
    """
    try:
        if isinstance(file, (str, os.PathLike)) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ImageError("it is not a regular file")  # a pipe would be waited for without end
        with Image.open(file, formats=formats()) as image:
            if max(image.size) > LONGEST * min(image.size):
                raise ImageError(f"it is {image.width} x {image.height} pixels: more than {LONGEST} times as long as it is wide")
            yield image
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(describe(error)) from error


def open_image(file: File, most: float = math.inf) -> Image.Image:
    """The first frame in RGB, upright as viewers show it; channels of 16 bits or floats are scaled to 8 bits.

    Raises:
        ImageError: it cannot be read, or has more than ``most`` pixels, which is told before they are decoded.
    """
    with opened(file) as image:
        if image.width * image.height > most:
            raise ImageError(f"it is {image.width} x {image.height} pixels: more than {most:,} in all")
        return to_rgb(upright(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB. Pillow would clip 16 bits and floats at 255, all white; they are scaled by their own depth."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # of these, I holds 16 bits too
        tags: Any = getattr(image, "tag_v2", {})
        values = np.asarray(image) / (2 ** max(tags.get(ExifTags.Base.BitsPerSample, (16,))) - 1)
        if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # 0 is white, which Pillow heeds for 8 bits only
            values = 1 - values
    elif image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ImageError(f"its floats are {values.min():.4g} to {values.max():.4g}, not 0 to 1: save it with 8 or 16 bits")
    elif image.mode == "I":
        raise ImageError("its integers, signed or of 32 bits, do not tell their range: save it with 8 or 16 bits")
    else:
        return image.convert("RGB")
    return Image.fromarray((255 * values).round().astype(np.uint8)).convert("RGB")


def orientation(image: Image.Image) -> int:
    """Orientation of an image by EXIF, from 2 to 8; 1 where there is none that can be read, as viewers have it."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in TURNS else 1
    except Exception:
        return 1


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, which it then no longer has. It keeps its format, which ``to_rgb`` asks for."""
    image.load()  # TIFF turns itself at this, and forgets its orientation
    turn = TURNS.get(orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format = image.format
    turned.info = {name: value for name, value in turned.info.items() if name not in SAYING_TURNS}
    return turned


def upright_size(file: File) -> tuple[int, int]:
    """Width and height that ``open_image`` gives, without decoding where the format allows.

    Raises:
        ImageError: it cannot be read.
    """
    with opened(file) as image:
        if image.format == "TIFF":
            image.load()
        return (image.height, image.width) if orientation(image) > 4 else image.size


def natural(text: str) -> tuple[list[str | int], str]:
    """Key for sorting as people count; what is equal but for case or leading zeros has one order too, the same on every machine."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", text.lower()))], text


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in HIDDEN


@dataclass
class Found:
    """The files of a folder and of all folders inside, hidden ones left out."""

    images: list[str] = field(default_factory=list)  # in natural order
    passed_over: dict[str, str] = field(default_factory=dict)  # what they are, by path


def scan(folder: str | os.PathLike[str], wanted: Iterable[str] | None = None) -> Found:
    """Files whose ending is among ``wanted`` (default: all ``endings``), and the others.

    Every real folder comes once, whatever links lead to it: by a link only if nothing else leads there, and never one around ``folder``
    itself, where the validation images may be too.

    Raises:
        OSError: a folder cannot be listed.
    """
    wanted = endings() if wanted is None else frozenset(wanted)
    found = Found()
    seen = {_identity(parent) for parent in Path(os.path.realpath(folder)).parents}
    folders, links = [os.fspath(folder)], deque[str]()
    while folders or links:
        here = folders.pop() if folders else links.popleft()
        if (identity := _identity(here)) in seen:
            continue
        seen.add(identity)
        with os.scandir(here) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if is_hidden(entry.name):
                    continue
                link = entry.is_symlink()
                if os.path.isdir(entry.path) if link else entry.is_dir():
                    (links if link else folders).append(entry.path)
                    continue
                ending = os.path.splitext(entry.name)[1].lower()
                if not (os.path.isfile(entry.path) if link else entry.is_file()):
                    found.passed_over[entry.path] = "broken links and the like"
                elif ending in wanted:
                    found.images.append(entry.path)
                else:
                    found.passed_over[entry.path] = ending or "without ending"
    found.images.sort(key=natural)
    return found


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def count_passed_over(passed_over: dict[str, str]) -> str:
    """Count in words: ``3 .txt, 1 without ending``."""
    return ", ".join(f"{count} {what}" for what, count in Counter(passed_over.values()).most_common())


def find_images(places: Sequence[str], more: frozenset[str] = frozenset()) -> tuple[list[Path], str]:
    """The images, and files of ``more`` endings, that files, folders (with all folders inside) and glob patterns name, each once, in order;
    and what was passed over.

    Raises:
        FileNotFoundError: a place names no image.
    """
    found: dict[tuple[str, str], Path] = {}  # by real folder and name: patterns follow links, in circles too
    passed_over: dict[str, str] = {}
    real = cache(os.path.realpath)
    wanted = endings() | more
    for place in places:
        images: list[str] = []
        for inside in [_at(place, wanted)] if os.path.exists(place) else _match(place, wanted):
            images += inside.images
            passed_over |= inside.passed_over
        if not images:
            others = "".join(f", {ending}" for ending in sorted(more))
            raise FileNotFoundError(
                f"there is no image {place}: give files, folders or patterns such as 'photos/*.jpg'; in folders, endings tell images: "
                f"those that Pillow reads{others}"
            )
        direct = {(real(os.path.dirname(file)), os.path.basename(file)): file for file in sorted(images, key=_depth, reverse=True)}
        found |= {key: Path(file) for key, file in sorted(direct.items(), key=lambda item: natural(item[1])) if key not in found}
    return list(found.values()), count_passed_over(passed_over)


def _depth(file: str) -> int:
    return file.count(os.sep)


def _at(place: str, wanted: frozenset[str]) -> Found:
    return scan(place, wanted) if os.path.isdir(place) else Found([place])  # a file that is named counts whatever its ending


def _match(pattern: str, wanted: frozenset[str]) -> Iterator[Found]:
    """Yield what a pattern names, without what is hidden and not named so. ``scan`` finds ``**``: ``glob`` follows links in circles, and
    those of two links take it forever."""
    parts = pattern.split(os.sep)
    named = {*parts, "", ".", ".."}
    first = parts.index("**") if "**" in parts else len(parts)
    for start in glob.glob(os.sep.join(parts[:first]) or (os.sep if pattern.startswith(os.sep) else os.curdir)):
        if any(is_hidden(part) for part in start.split(os.sep) if part not in named):
            continue
        if first == len(parts):
            yield _at(start, wanted)
        elif os.path.isdir(start):
            inside = scan(start, wanted)
            for file, passed_over in (dict.fromkeys(inside.images, "") | inside.passed_over).items():
                steps = os.path.relpath(file, start).split(os.sep)
                named_itself = _fits(steps, parts[first:])
                if named_itself or any(_fits(steps[:depth], parts[first:]) for depth in range(1, len(steps))):
                    is_image = os.path.isfile(file) if named_itself else not passed_over
                    yield Found([file]) if is_image else Found(passed_over={file: passed_over})


def _fits(steps: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not steps
    if pattern[0] == "**":
        return any(_fits(steps[skipped:], pattern[1:]) for skipped in range(len(steps) + 1))
    return bool(steps) and fnmatchcase(steps[0], pattern[0]) and _fits(steps[1:], pattern[1:])


def channels(model: nn.Module) -> int:
    """Channels of the images that a model takes."""
    return int(getattr(model, "in_chans", 3))


def data_config(model: nn.Module) -> dict[str, Any]:
    """timm's data configuration of a model, whose ``pretrained_cfg`` may come from anywhere.

    Raises:
        ValueError: it says something that cannot be.
    """
    config = resolve_model_data_config(model)
    is_right = {
        "input_size": all(isinstance(side, int) and 0 < side <= LARGEST for side in config["input_size"]),
        "interpolation": config["interpolation"] in ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming", "random"),
        "mean": all(isinstance(value, (int, float)) and math.isfinite(value) for value in config["mean"]),
        "std": all(isinstance(value, (int, float)) and 0 < value < math.inf for value in config["std"]),
        "crop_pct": isinstance(config["crop_pct"], (int, float)) and 0 < config["crop_pct"] <= 2,
    }
    if wrong := [f"{name} {str(config[name])[:80]}" for name, right in is_right.items() if not right]:
        raise ValueError(f"this {type(model).__name__} is said to take images of {', '.join(wrong)}, which cannot be")
    return config


def picture_config(model: nn.Module) -> dict[str, Any]:
    """``data_config`` of a model that takes pictures.

    Raises:
        ValueError: the model takes images of other than three channels, or its configuration cannot be.
    """
    config = data_config(model)
    if config["input_size"][0] != 3:
        raise ValueError(f"pictures have 3 channels, and this {type(model).__name__} takes images of {config['input_size'][0]}")
    return config
