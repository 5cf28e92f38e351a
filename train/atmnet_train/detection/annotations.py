"""COCO's annotation files: found, checked before any long work, and turned into training targets."""

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UsageError
from ..common.weights import shorten

Record = dict[str, Any]

# What every entry of a list must have; `area` and `iscrowd` of annotations have defaults.
REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
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
        annotations = [
            {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0} | row | {"id": number} for number, row in enumerate(self.annotations, 1)
        ]
        categories = [{"id": id, "name": name} for id, name in zip(self.category_ids, self.classes, strict=True)]
        return {"images": self.images, "annotations": annotations, "categories": categories}

    def targets(self, masks: bool) -> tuple[list[Record], list[str]]:
        """Record of each image with `boxes` (x1, y1, x2, y2), `labels` and, if asked for, `segmentations`, without crowds; and the
        objects left out because nothing of them lies inside their image."""
        label = {id: number for number, id in enumerate(self.category_ids, 1)}
        targets = {image["id"]: image | {"boxes": [], "labels": [], "segmentations": []} for image in self.images}
        left_out = []
        for number, row in enumerate(self.annotations):
            if row.get("iscrowd"):
                continue
            target = targets[row["image_id"]]
            box = clip(row["bbox"], target["width"], target["height"])
            segmentation = usable_parts(row["segmentation"]) if masks else []
            if box is None or (masks and not segmentation):
                what = f"box {row['bbox']}" if box is None else "polygons without area"
                left_out.append(f"{entry(row, number)} of {target['file_name']}, {target['width']} x {target['height']}: {what}")
                continue
            target["boxes"].append(box)
            target["labels"].append(label[row["category_id"]])
            target["segmentations"].append(segmentation)
        return list(targets.values()), left_out


def clip(bbox: list[float], width: int, height: int) -> list[float] | None:
    """COCO's (x, y, width, height) to the corners of what lies inside the image; None if that is narrower or lower than a pixel."""
    x, y, w, h = bbox
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return [x1, y1, x2, y2] if x2 - x1 >= 1 and y2 - y1 >= 1 else None


def usable_parts(segmentation: Any) -> Any:
    """Polygons of at least three corners; run lengths as they are."""
    if isinstance(segmentation, dict):
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) >= 6]


def entry(row: Record, number: int) -> str:
    return f"annotation {row['id']}" if "id" in row else f"annotations[{number}]"


def open_split(root: Path, split: str, masks: bool) -> Split:
    """`root/SPLIT/` with `root/annotations/instances_SPLIT.json`; with `masks`, every object must have one."""
    if not root.is_dir():
        raise UsageError(f"--data-dir {root}: there is no such folder. {LAYOUT}")
    folder = first_that_exists(root, [split, f"images/{split}"], f"the images of the split {split}")
    source = first_that_exists(root, [f"annotations/instances_{split}.json", f"annotations/{split}.json"], f"the annotations of {split}")
    content = read_json(source)
    check_format(source, content)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    data = Split(
        folder=folder,
        source=source,
        images=sorted(content["images"], key=lambda image: image["id"]),
        annotations=content["annotations"],
        category_ids=[category["id"] for category in categories],
        classes=[str(category["name"]) for category in categories],
    )
    check_references(data)
    check_files(data)
    if masks:
        check_masks(data)
    return data


def first_that_exists(root: Path, names: list[str], what: str) -> Path:
    for name in names:
        if (root / name).exists():
            return root / name
    inside = root / "annotations" if names[0].startswith("annotations/") and (root / "annotations").is_dir() else root
    held = shorten(sorted(path.name for path in inside.iterdir())) or "nothing"
    raise UsageError(f"--data-dir {root} has no {' or '.join(names)} for {what}; {inside} holds {held}. {LAYOUT}")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not JSON that can be read: {error}") from error


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
                held = shorten(list(row)) if isinstance(row, dict) else repr(row)[:60]
                raise UsageError(f"{path}: {part}[{number}] has no {', '.join(missing)}; it holds {held}. COCO's instances have them")
    for part, keys in {"images": ("id", "width", "height"), "categories": ("id",)}.items():
        rows = content[part]
        if not rows:
            raise UsageError(f"{path} lists no {part}: the split is empty")
        if wrong := [f"{key} {row[key]!r}" for row in rows for key in keys if type(row[key]) is not int]:
            raise UsageError(f"{path}: {part} have numbers that are not integers: {shorten(wrong)}")
        ids = [row["id"] for row in rows]
        if len(set(ids)) < len(ids):
            twice = [id for id, count in Counter(ids).items() if count > 1]
            raise UsageError(f"{path}: {len(twice)} ids occur more than once in {part}: {shorten(list(map(str, twice)))}")


def check_references(data: Split) -> None:
    """Refuses annotations of no image or category that there is, and boxes that are not four numbers."""
    image_ids, category_ids = {image["id"] for image in data.images}, set(data.category_ids)
    wrong = []
    for number, row in enumerate(data.annotations):
        if row["image_id"] not in image_ids:
            wrong.append(f"{entry(row, number)} is of image {row['image_id']!r}")
        elif row["category_id"] not in category_ids:
            wrong.append(f"{entry(row, number)} is of category {row['category_id']!r}")
        elif not is_box(row["bbox"]):
            wrong.append(f"{entry(row, number)} has the box {row['bbox']!r}")
    if wrong:
        raise UsageError(
            f"{data.source}: {len(wrong)} annotations are of an image or a category that it does not list, "
            f"or have a box that is not [x, y, width, height]: {shorten(wrong)}"
        )


def is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) and math.isfinite(value) for value in box)


def check_files(data: Split) -> None:
    """One listing of the folder: asking for each of 118,000 files takes minutes over a network."""
    held = set(os.listdir(data.folder))
    names = [image["file_name"] for image in data.images]
    if missing := [name for name in names if name not in held and not (os.sep in name and (data.folder / name).is_file())]:
        raise UsageError(f"{len(missing)} of the {len(names)} images in {data.source} are not in {data.folder}: {shorten(missing)}")


def check_masks(data: Split) -> None:
    sizes = {image["id"]: [image["height"], image["width"]] for image in data.images}
    wrong = [
        entry(row, number)
        for number, row in enumerate(data.annotations)
        if not is_segmentation(row.get("segmentation"), sizes[row["image_id"]])
    ]
    if wrong:
        raise UsageError(
            f"{data.source}: {len(wrong)} annotations have no mask of their image's size (polygons, or run lengths with size and counts): "
            f"{shorten(wrong)}. A detector of boxes alone, --detector retinanet, needs none"
        )


def is_segmentation(segmentation: Any, size: list[int]) -> bool:
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        return segmentation.get("size") == size and (
            isinstance(counts, str) or (isinstance(counts, list) and sum(counts) == math.prod(size))
        )
    return (
        isinstance(segmentation, list)
        and segmentation != []
        and all(isinstance(part, list) and len(part) % 2 == 0 for part in segmentation)
    )
