"""Folders of images, listed once for all programs."""

from collections.abc import Callable, Iterable
from pathlib import Path

from atmnet.images import count_passed_over, scan

from .errors import UsageError
from .weights import shorten

Tell = Callable[[str], object]


def list_images(folder: Path, tell: Tell, wanted: Iterable[str] | None = None) -> list[str]:
    """Files below a folder that their ending (default: any that Pillow reads) makes images, in natural order; the others are told of."""
    try:
        found = scan(folder, wanted)
    except OSError as error:
        raise UsageError(f"{folder} cannot be listed: {error}") from error
    if found.passed_over:
        tell(f"{folder}: passed over {count_passed_over(found.passed_over)}")
    return found.images


def tell_of_overlap(train: Path, val: Path, tell: Tell) -> None:
    """Validation images that are trained on say nothing of others."""
    if train.samefile(val):
        tell(f"{val} holds the training images too: what is measured on them says nothing of others")


def held(folder: Path) -> str:
    """Content of a folder, for a message."""
    try:
        return shorten(sorted(entry.name for entry in folder.iterdir())) or "nothing"
    except OSError as error:
        return f"what cannot be listed ({error})"
