"""Detections drawn on their images, beside what the annotations have there."""

import colorsys
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from ..common.files import write_atomically
from ..common.pictures import MOST, Example
from .annotations import Split
from .checks import Record
from .data import read_image
from .masks import decode, usable

SHOWN_FROM = 0.3  # the score of a detection
STRIP = 16  # pixels of the line above each picture
LEGIBLE = 480  # pixels of the longer side below which an image is enlarged: captions are 10 high


def draw_pictures(folder: Path, split: Split, results: Mapping[int, Sequence[Record]], count: int, masks: bool) -> list[Path]:
    """Draws `folder/<image>.png` for the first `count` images with results: detections on the left, annotations on the right."""
    drawn = []
    truth: dict[int, list[Record]] = {image_id: [] for image_id in sorted(results)[:count]}
    for row in split.annotations:
        if row["image_id"] in truth:
            truth[row["image_id"]].append(row)
    for record in split.images:
        if record["id"] not in truth:
            continue
        image = read_image(split.folder, record)
        found = [row for row in results[record["id"]] if row["score"] >= SHOWN_FROM]
        title = f"{len(found)} of {len(results[record['id']])} detections: those with a score of {SHOWN_FROM} or more"
        sides = {title: found, "annotations": truth[record["id"]]}
        pages = [to_pil_image(draw(image, record, rows, split, masks)) for rows in sides.values()]
        width, height = pages[0].size
        picture = Image.new("RGB", (2 * width + 4, height + STRIP), "white")
        for number, (title, page) in enumerate(zip(sides, pages, strict=True)):
            left = number * (width + 4)
            ImageDraw.Draw(picture).text((left + 2, 2), title, fill="black")
            picture.paste(page, (left, STRIP))
        name = Path(record["file_name"]).with_suffix(".png").name
        write_atomically(folder / name, partial(picture.save, format="png"))
        drawn.append(folder / name)
    return drawn


def draw(image: Tensor, record: Record, rows: Sequence[Record], split: Split, masks: bool) -> Tensor:
    """Objects in COCO's format on an image `[3, H, W]`, each class in a colour of its own."""
    times = max(1, LEGIBLE // max(record["width"], record["height"]))
    image = enlarge(image, times)
    if not rows:
        return image
    labels = [split.category_ids.index(row["category_id"]) for row in rows]
    colours = [colour(label) for label in labels]
    if masks:
        for row, fill in zip(rows, colours, strict=True):  # one by one: together, they would be black where they overlap
            if mask_of := usable(row["segmentation"], record["height"], record["width"]):
                mask = decode([mask_of], record["height"], record["width"])[0].bool()
                image = draw_segmentation_masks(image, enlarge(mask, times), alpha=0.45, colors=[fill])
    boxes = box_convert(times * torch.tensor([row["bbox"] for row in rows]), "xywh", "xyxy")
    texts = [caption(row, split.classes[label]) for row, label in zip(rows, labels, strict=True)]
    return draw_bounding_boxes(image, boxes, texts, colors=colours, width=2, fill_labels=True)


def enlarge(pixels: Tensor, times: int) -> Tensor:
    return repeat(pixels, "... h w -> ... (h repeat_h) (w repeat_w)", repeat_h=times, repeat_w=times)


def caption(row: Record, name: str) -> str:
    if row.get("iscrowd"):
        return f"{name} (crowd)"
    return f"{name} {row['score']:.2f}" if "score" in row else name


def colour(label: int) -> tuple[int, int, int]:
    """Neighbouring labels get hues far apart: steps of the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def batch_examples(images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], classes: Sequence[str]) -> list[Example]:
    """A training batch, with the boxes and masks that belong to it; the detector itself resizes the images."""
    examples = []
    for image, target in zip(images[:MOST], targets[:MOST], strict=True):
        drawn, labels = image.cpu(), [label - 1 for label in target["labels"].tolist()]
        colours = [colour(label) for label in labels]
        for mask, fill in zip(target.get("masks", ()), colours, strict=False):
            drawn = draw_segmentation_masks(drawn, mask.cpu().bool(), alpha=0.45, colors=[fill])
        if labels:
            drawn = draw_bounding_boxes(drawn, target["boxes"].cpu(), colors=colours, width=max(2, max(drawn.shape) // 150))
        found = ", ".join(dict.fromkeys(classes[label] for label in labels)) or "nothing"
        caption = "\n".join(textwrap.wrap(found, 34, max_lines=2, placeholder=" …"))
        examples.append(Example(rearrange(drawn, "c h w -> h w c").numpy(), caption))
    return examples
