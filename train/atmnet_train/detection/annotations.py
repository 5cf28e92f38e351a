"""COCO's annotation files: found, checked before any long work, and turned into training targets."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atmnet.images import describe

from atm_triton.strict_json import loads

from ..common.errors import UsageError
from ..common.listing import held
from ..common.weights import shorten
from .checks import REQUIRED, Record, check_format, check_rows, entry
from .masks import nothing, usable

LAYOUT = "COCO's layout is DIR/train2017/*.jpg, DIR/val2017/*.jpg and DIR/annotations/instances_{train2017,val2017}.json"


@dataclass
class Split:
    """The images of one split, in the order of their ids, and what is on them.

    Labels are 1 to K, in the order of the category ids, which have gaps in COCO; 0 is the background.
    """

    folder: Path
    source: Path
    images: list[Record]
    annotations: list[Record]  # all of them, as COCO's evaluation counts them
    category_ids: list[int]  # by label - 1
    classes: list[str]  # by label - 1

    @property
    def ground_truth(self) -> dict[str, list[Record]]:
        """Truth for COCO's evaluation, with ids of its own: a 0, or one given twice, would make it miscount."""
        annotations = [{"area": row["bbox"][2] * row["bbox"][3]} | row | {"id": number} for number, row in enumerate(self.annotations, 1)]
        sizes = {image["id"]: (image["height"], image["width"]) for image in self.images}
        for row in annotations:
            if row.get("segmentation") == []:
                row["segmentation"] = nothing(*sizes[row["image_id"]])
        categories = [{"id": id, "name": name} for id, name in zip(self.category_ids, self.classes, strict=True)]
        return {"images": self.images, "annotations": annotations, "categories": categories}

    def targets(self, masks: bool) -> tuple[list[Record], list[str]]:
        """Record of each image with `boxes` (x1, y1, x2, y2), `labels`, `names` and, if asked for, `segmentations`, without crowds; and the
        objects left out because nothing of them lies inside their image."""
        label = {id: number for number, id in enumerate(self.category_ids, 1)}
        targets = {image["id"]: image | {"boxes": [], "labels": [], "names": [], "segmentations": []} for image in self.images}
        left_out = []
        for number, row in enumerate(self.annotations):
            if row["iscrowd"]:
                continue
            target = targets[row["image_id"]]
            box = clip(row["bbox"], target["width"], target["height"])
            segmentation = row["segmentation"] if masks else []
            if box is None or (masks and not segmentation):
                what = f"box {row['bbox']}" if box is None else "a mask without area"
                left_out.append(f"{entry(row, number)} of {target['file_name']}, {target['width']} x {target['height']}: {what}")
                continue
            target["boxes"].append(box)
            target["labels"].append(label[row["category_id"]])
            target["names"].append(entry(row, number))
            target["segmentations"].append(segmentation)
        return list(targets.values()), left_out


def doubts(split: Split) -> list[str]:
    """What can be used, and yet is hardly meant; each in a line."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in split.images}
    objects = [(entry(row, number), row) for number, row in enumerate(split.annotations) if not row["iscrowd"]]
    filled = {row["category_id"] for _, row in objects}
    keys = [(row["image_id"], row["category_id"], *row["bbox"]) for _, row in objects]
    first = {key: name for key, (name, _) in zip(reversed(keys), reversed(objects), strict=True)}
    found: dict[str, list[str]] = {
        "objects reach out of their image, where they are cut off; a box is [x, y, width, height]": [
            name for name, row in objects if reaches_out(row["bbox"], *sizes[row["image_id"]])
        ],
        "objects have another box than their polygons": [
            name for name, row in objects if isinstance(mask := row.get("segmentation"), list) and mask and is_apart(row["bbox"], mask)
        ],
        "objects are listed more than once, with the same image, category and box": [
            name for key, (name, _) in zip(keys, objects, strict=True) if first[key] != name
        ],
        "files are listed for several images": repeated(image["file_name"] for image in split.images),
        "names stand for several categories": repeated(split.classes),
        "categories have no object": [name for id, name in zip(split.category_ids, split.classes, strict=True) if id not in filled],
    }
    return [f"{split.source}: {len(names)} {what}: {shorten(names)}" for what, names in found.items() if names]


def repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def reaches_out(bbox: list[float], width: int, height: int) -> bool:
    """By more than a pixel."""
    x, y, w, h = bbox
    return min(x, y) < -1 or x + w > width + 1 or y + h > height + 1


def is_apart(bbox: list[float], polygons: list[list[float]]) -> bool:
    """By more than half its longer side."""
    x, y, w, h = bbox
    places = [(min(polygon[axis::2]), max(polygon[axis::2])) for axis in (0, 1) for polygon in polygons]
    lows, highs = zip(*places, strict=True)
    count, limit = len(polygons), 1 + max(w, h) / 2
    around = min(lows[:count]), max(highs[:count]), min(lows[count:]), max(highs[count:])
    return any(abs(one - other) > limit for one, other in zip(around, (x, x + w, y, y + h), strict=True))


def clip(bbox: list[float], width: int, height: int) -> list[float] | None:
    """COCO's (x, y, width, height) to the corners of what lies inside the image; None if that is narrower or lower than a pixel."""
    x, y, w, h = bbox
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return [x1, y1, x2, y2] if x2 - x1 >= 1 and y2 - y1 >= 1 else None


def open_split(root: Path, split: str, masks: bool) -> Split:
    """`root/SPLIT/` with `root/annotations/instances_SPLIT.json`; with `masks`, every object must have one."""
    if not root.is_dir():
        raise UsageError(f"--data-dir {root}: there is no such folder. {LAYOUT}")
    folder = first_that_exists(root, [split, f"images/{split}"], f"the images of the split {split}")
    source = first_that_exists(root, [f"annotations/instances_{split}.json", f"annotations/{split}.json"], f"the annotations of {split}")
    content = read_json(source)
    check_format(source, content)
    check_rows(source, content, masks)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    data = Split(
        folder=folder,
        source=source,
        images=[{key: image[key] for key in REQUIRED["images"]} for image in sorted(content["images"], key=lambda image: image["id"])],
        annotations=[clean(row, *sizes[row["image_id"]], masks) for row in content["annotations"]],
        category_ids=[category["id"] for category in categories],
        classes=[str(category["name"]) for category in categories],
    )
    check_files(data)
    return data


def clean(row: Record, height: int, width: int, masks: bool) -> Record:
    """Parts of an annotation that are used, in one form: what else stands there, nobody has checked."""
    found: Record = {key: row[key] for key in ("id", "image_id", "category_id", "bbox") if key in row}
    found["iscrowd"] = int(row.get("iscrowd") or 0)
    if row.get("area") is not None:
        found["area"] = row["area"]
    if masks:
        found["segmentation"] = usable(row["segmentation"], height, width)
    return found


def first_that_exists(root: Path, names: list[str], what: str) -> Path:
    of_annotations = names[0].startswith("annotations/")
    for name in names:
        if (root / name).is_file() if of_annotations else (root / name).is_dir():
            return root / name
    inside = root / "annotations" if of_annotations and (root / "annotations").is_dir() else root
    raise UsageError(f"--data-dir {root} has no {' or '.join(names)} for {what}; {inside} holds {held(inside)}. {LAYOUT}")


def read_json(path: Path) -> Any:
    try:
        return loads(path.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path} is not JSON that can be read: {describe(error)}") from error


def check_files(data: Split) -> None:
    """One listing of the folder: asking for each of 118,000 files takes minutes over a network."""
    try:
        there = set(os.listdir(data.folder))
    except OSError as error:
        raise UsageError(f"{data.folder} cannot be listed: {error}") from error
    names = [image["file_name"] for image in data.images]
    if missing := [name for name in names if name not in there and not (os.sep in name and (data.folder / name).is_file())]:
        raise UsageError(f"{len(missing)} of the {len(names)} images in {data.source} are not in {data.folder}: {shorten(missing)}")
