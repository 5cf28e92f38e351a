"""Checks of COCO's annotation files, before any long work: every entry that cannot be used is named."""

import reprlib
from collections import Counter
from collections.abc import Set
from pathlib import Path
from typing import Any

from atmnet.images import LONGEST
from PIL import Image

from ..common.errors import UsageError
from ..common.weights import shorten
from .masks import FARTHEST, are_numbers, wrong_mask

Record = dict[str, Any]

# What every entry of a list must have; `area` and `iscrowd` of annotations have defaults.
REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
LARGEST_ID = 2**63 - 1  # of a tensor
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**27)  # that Pillow opens

Size = tuple[int, int]  # height, width


def check_format(path: Path, content: Any) -> None:
    """Captions, keypoints' results, panoptic annotations and lists of detections are JSON too."""
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}: COCO's format is an object with the lists {', '.join(REQUIRED)}")
    for part, keys in REQUIRED.items():
        rows = content.get(part)
        if not isinstance(rows, list):
            raise UsageError(f"{path} has no list {part!r}, which COCO's format has; it holds {shorten(list(content)) or 'nothing'}")
        for number, row in enumerate(rows):
            if missing := [key for key in keys if not isinstance(row, dict) or key not in row]:
                holds = shorten(list(row)) if isinstance(row, dict) else reprlib.repr(row)
                raise UsageError(f"{path}: {part}[{number}] has no {', '.join(missing)}; it holds {holds}. COCO's instances have them")


def check_rows(path: Path, content: dict[str, list[Record]], masks: bool) -> None:
    """Refuses values that cannot be; with `masks`, annotations without one too."""
    images, annotations, categories = (content[part] for part in REQUIRED)
    for part, rows, wrong in (("images", images, wrong_image), ("categories", categories, wrong_category)):
        if not rows:
            raise UsageError(f"{path} lists no {part}: the split is empty")
        found = [f"{part}[{number}] has {what}" for number, row in enumerate(rows) if (what := wrong(row))]
        if found:
            raise UsageError(f"{path}: {len(found)} {part} cannot be used: {shorten(found)}")
        twice = [str(id) for id, count in Counter(row["id"] for row in rows).items() if count > 1]
        if twice:
            raise UsageError(f"{path}: {len(twice)} ids occur more than once in {part}: {shorten(twice)}")
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    ids = {category["id"] for category in categories}
    found = [f"{entry(row, number)} {what}" for number, row in enumerate(annotations) if (what := wrong_annotation(row, sizes, ids))]
    if found:
        raise UsageError(f"{path}: {len(found)} annotations cannot be used: {shorten(found)}")
    if not masks:
        return
    found = [
        f"{entry(row, number)} ({what})"
        for number, row in enumerate(annotations)
        if (what := wrong_mask(row.get("segmentation"), *sizes[row["image_id"]]))
    ]
    if found:
        raise UsageError(
            f"{path}: {len(found)} annotations have no mask of their image's size (polygons, or run lengths with size and counts): "
            f"{shorten(found)}. A detector of boxes alone, --detector retinanet, needs none"
        )


def entry(row: Record, number: int) -> str:
    """Name of an annotation: by its id, or by its place where it has none."""
    return f"annotation {row['id']}" if is_integer(row.get("id")) else f"annotations[{number}]"


def is_integer(value: Any, least: int = 0, most: int = LARGEST_ID) -> bool:
    return type(value) is int and least <= value <= most


def wrong_image(row: Record) -> str:
    """Tell what is wrong with an entry of the images; nothing if it can be used."""
    if not is_integer(row["id"]):
        return f"the id {reprlib.repr(row['id'])}, which is no integer from 0 on"
    if not isinstance(row["file_name"], str) or not row["file_name"].strip("./"):
        return f"the file_name {reprlib.repr(row['file_name'])}"
    for side in ("width", "height"):
        if not is_integer(row[side], 1):
            return f"the {side} {reprlib.repr(row[side])}, which is no integer from 1 on"
    sides = row["width"], row["height"]
    if max(sides) > LONGEST * min(sides) or row["width"] * row["height"] > MOST_PIXELS:
        return f"the size {row['width']} x {row['height']}, which is of no image that could be opened"
    return ""


def wrong_category(row: Record) -> str:
    if not is_integer(row["id"]):
        return f"the id {reprlib.repr(row['id'])}, which is no integer from 0 on"
    return "" if isinstance(row["name"], (str, int)) else f"the name {reprlib.repr(row['name'])}"


def wrong_annotation(row: Record, sizes: dict[int, Size], categories: Set[int]) -> str:
    """Tell what is wrong with an annotation but for its mask; nothing if it can be used."""
    if not is_integer(row.get("id", 0)):
        return f"has the id {reprlib.repr(row['id'])}, which is no integer from 0 on"
    image, category, crowd, area = row["image_id"], row["category_id"], row.get("iscrowd"), row.get("area")
    if not is_integer(image) or image not in sizes:
        return f"is of image {reprlib.repr(image)}, which is not listed"
    if not is_integer(category) or category not in categories:
        return f"is of category {reprlib.repr(category)}, which is not listed"
    limit = FARTHEST * max(sizes[image])
    if not are_numbers(row["bbox"], limit) or len(row["bbox"]) != 4 or min(row["bbox"][2:]) < 0:
        return f"has the box {reprlib.repr(row['bbox'])}, not [x, y, width, height] within {FARTHEST} sides of its image"
    if crowd is not None and (not isinstance(crowd, int) or crowd not in (0, 1)):
        return f"has iscrowd {reprlib.repr(crowd)}, not 0 or 1"
    if area is not None and not (are_numbers([area], limit**2) and area >= 0):
        return f"has the area {reprlib.repr(area)}"
    return ""
