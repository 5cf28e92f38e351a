"""Detections drawn on their images, beside what the annotations have there."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from atmnet.drawing.objects import LEGIBLE, SHOWN_FROM, colour, draw_objects
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
from .masks import decode, nothing, usable

STRIP = 16  # pixels of the line above each picture


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
    labels = [split.category_ids.index(row["category_id"]) for row in rows]
    boxes = box_convert(times * torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4), "xywh", "xyxy")
    captions = [caption(row, split.classes[label]) for row, label in zip(rows, labels, strict=True)]
    planes = (enlarge(mask, times) for mask in decoded(rows, record["height"], record["width"])) if masks else ()
    return draw_objects(enlarge(image, times), boxes, labels, captions, planes)


def decoded(rows: Sequence[Record], height: int, width: int) -> Iterator[Tensor]:
    for row in rows:
        yield decode([usable(row["segmentation"], height, width) or nothing(height, width)], height, width)[0].bool()


def enlarge(pixels: Tensor, times: int) -> Tensor:
    return repeat(pixels, "... h w -> ... (h repeat_h) (w repeat_w)", repeat_h=times, repeat_w=times)


def caption(row: Record, name: str) -> str:
    if row.get("iscrowd"):
        return f"{name} (crowd)"
    return f"{name} {row['score']:.2f}" if "score" in row else name


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
