"""A small data set in COCO's layout: red squares, blue discs, and now and then a crowd or an image with nothing on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = {3: "square", 11: "disc"}  # with gaps, as COCO's ids
COLOURS = {3: (220, 50, 40), 11: (40, 70, 230)}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths: down the columns, of zeros first."""
    flat = mask.astype(bool).flatten(order="F")
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *borders, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def draw_object(image: np.ndarray, category: int, x: int, y: int, size: int) -> dict[str, Any]:
    """Draws it, and returns its annotation: a polygon for a square, run lengths for a disc."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    if category == 3:
        mask = (rows >= y) & (rows < y + size) & (columns >= x) & (columns < x + size)
        segmentation: Any = [[x, y, x + size, y, x + size, y + size, x, y + size]]
    else:
        mask = (rows - y - (size - 1) / 2) ** 2 + (columns - x - (size - 1) / 2) ** 2 <= (size / 2) ** 2
        segmentation = run_lengths(mask)
    image[mask] = COLOURS[category]
    bbox, area = [float(x), float(y), float(size), float(size)], float(mask.sum())
    return {"category_id": category, "bbox": bbox, "area": area, "iscrowd": 0, "segmentation": segmentation}


def write_split(root: Path, split: str, count: int, seed: int, height: int = 96, width: int = 112, empty: bool = True) -> None:
    """`count` images with a square on the left and a disc on the right. With `empty`, the last has nothing and the first a crowd."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for number in range(count):
        image = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
        record = {"id": 100 * seed + 7 * number + 1, "file_name": f"{split}-{number}.png", "height": height, "width": width}
        found = []
        if not empty or number < count - 1:
            for category, left in ((3, 2), (11, width // 2)):
                size = int(rng.integers(24, 41))
                found.append(draw_object(image, category, left + int(rng.integers(0, 12)), int(rng.integers(2, height - size)), size))
        if empty and number == 0:
            crowd = np.zeros((height, width), bool)
            crowd[-12:, :] = True
            box = [0.0, float(height - 12), float(width), 12.0]
            row = {"category_id": 11, "bbox": box, "area": 12.0 * width, "iscrowd": 1, "segmentation": run_lengths(crowd)}
            found.append(row)
        images.append(record)
        annotations += [{"id": len(annotations) + index + 1, "image_id": record["id"]} | row for index, row in enumerate(found)]
        Image.fromarray(image).save(root / split / record["file_name"])
    categories = [{"id": id, "name": name} for id, name in reversed(CATEGORIES.items())]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def write_coco(root: Path, train: int = 6, val: int = 5) -> Path:
    write_split(root, "train2017", train, seed=1)
    write_split(root, "val2017", val, seed=2)
    return root
