"""The objects on an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from einops import repeat
from PIL import Image
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ..drawing.objects import LEGIBLE, LONGEST, SHOWN_FROM, draw_objects
from ..drawing.text import Entry
from ..tasks import About
from .options import Options
from .result import Predictor, Result, check_finite
from .rle import run_lengths

MASK_THRESHOLD = 0.5


@dataclass
class Boxes(Result):
    """Objects, first the surest. ``draw``, ``to_dict`` and ``rows`` are of those from ``threshold`` on, ``to_coco`` is of all.

    Attributes:
        boxes: ``[N, 4]``: x1, y1, x2, y2 in pixels of the image.
        scores: ``[N]``
        labels: ``[N]``, from 1 on.
        windows: ``[N, 1, 28, 28]``: the masks in their boxes, of a detector that makes some, each of which ``mask`` puts into the image.
        classes: Names by label, from 1 on.
        category_ids: What COCO's files call them.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    windows: Tensor | None = None
    classes: list[str] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    threshold: float = SHOWN_FROM

    def mask(self, index: int, scale: float = 1.0, size: tuple[int, int] | None = None) -> Tensor:
        """Mask ``[H, W]`` of an object; of a picture of another ``size`` that is ``scale`` times as large."""
        if self.windows is None:
            raise ValueError("this detector makes no masks")
        one = slice(index, index + 1)
        pasted = paste_masks_in_image(self.windows[one], scale * self.boxes[one], size or (self.image.height, self.image.width))
        return pasted[0, 0] > MASK_THRESHOLD

    def _shown(self) -> list[int]:
        return [index for index, score in enumerate(self.scores.tolist()) if score >= self.threshold]

    def picture(self) -> tuple[Image.Image, list[Entry]]:
        """Boxes and masks on the image, the surest uppermost. Captions explain them."""
        shown, longer = self._shown()[::-1], max(self.image.size)
        image, scale = self.image, 1.0
        if longer > LONGEST:
            scale = LONGEST / longer
            image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        pixels = pil_to_tensor(image)
        if (times := max(1, LEGIBLE // longer)) > 1:
            pixels, scale = repeat(pixels, "c h w -> c (h a) (w b)", a=times, b=times), float(times)
        size = (pixels.shape[1], pixels.shape[2])
        labels = self.labels[shown].tolist()
        captions = [f"{self.classes[label - 1]} {self.scores[index]:.2f}" for index, label in zip(shown, labels, strict=True)]
        masks: Iterator[Tensor] = iter(()) if self.windows is None else (self.mask(index, scale, size) for index in shown)
        picture: Image.Image = to_pil_image(
            draw_objects(pixels, scale * self.boxes[shown], [label - 1 for label in labels], captions, masks)
        )
        return picture, []

    def to_dict(self) -> dict[str, Any]:
        objects: list[dict[str, Any]] = [
            self._named(index)
            | {"box": self.boxes[index].tolist()}
            | ({} if self.windows is None else {"mask": run_lengths(self.mask(index))})
            for index in self._shown()
        ]
        return {"size": [self.image.height, self.image.width], "threshold": self.threshold, "objects": objects}

    def rows(self) -> list[dict[str, Any]]:
        corners = ("x1", "y1", "x2", "y2")
        return [self._named(index) | dict(zip(corners, self.boxes[index].tolist(), strict=True)) for index in self._shown()]

    def _named(self, index: int) -> dict[str, Any]:
        label = int(self.labels[index])
        return {"label": label, "name": self.classes[label - 1], "score": float(self.scores[index])}

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Rows of COCO's results, as train/coco.py writes them."""
        corners = box_convert(self.boxes, "xyxy", "xywh").tolist()
        rows: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": self.category_ids[label - 1], "bbox": box, "score": score}
            for box, label, score in zip(corners, self.labels.tolist(), self.scores.tolist(), strict=True)
        ]
        if self.windows is not None:
            rows = [row | {"segmentation": run_lengths(self.mask(index))} for index, row in enumerate(rows)]
        return rows


class Detecting(Predictor):
    """Predicts as train/coco.py evaluates."""

    columns = ("label", "name", "score", "x1", "y1", "x2", "y2")

    def __init__(self, model: Any, described: About, options: Options) -> None:
        if options.tile or options.multi_scale:
            raise ValueError("tiles and multi_scale are for segmenters; this is a detector")
        self.model, self.described = model, described
        self.threshold = SHOWN_FROM if options.threshold is None else options.threshold
        self.weight: Tensor = next(model.parameters())

    def load(self, image: Image.Image) -> tuple[Image.Image, Tensor]:
        return image, pil_to_tensor(image).float() / 255

    def find(self, loaded: list[tuple[Image.Image, Tensor]]) -> list[Boxes]:
        return [self._find(image, pixels) for image, pixels in loaded]

    def _find(self, image: Image.Image, pixels: Tensor) -> Boxes:
        found = {name: value.float().cpu() for name, value in self._detect(pixels.to(self.weight)).items()}
        for values in found.values():
            check_finite(values)
        return Boxes(
            image,
            found["boxes"],
            found["scores"],
            found["labels"].long(),
            found.get("masks"),
            self.described.classes,
            self.described.category_ids,
            self.threshold,
        )

    def _detect(self, pixels: Tensor) -> dict[str, Tensor]:
        """Detections of the model itself, but with masks in their boxes: torchvision would make a hundred as large as the image."""
        model = self.model
        if not isinstance(model, MaskRCNN):
            found: dict[str, Tensor] = model([pixels])[0]
            return found
        images, _ = model.transform([pixels])
        features = model.backbone(images.tensors)
        proposals, _ = model.rpn(images, features)
        detections, _ = model.roi_heads(features, proposals, images.image_sizes)
        boxes = resize_boxes(detections[0]["boxes"], images.image_sizes[0], tuple(pixels.shape[-2:]))
        return detections[0] | {"boxes": boxes}
