"""The class of each pixel of an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import repeat
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ..drawing.objects import LEGIBLE, LONGEST
from ..drawing.regions import overlay, palette, tint
from ..drawing.text import Entry, in_percent
from ..tasks import About
from .options import Options
from .result import Predictor, Result, check_finite
from .segmenting import segment
from .tiles import by_tiles
from .views import ONE_SCALE, SCALES, EvalTransform, times


@dataclass
class Masks(Result):
    """A segmentation.

    Attributes:
        labels: ``[H, W]``, as annotations have them: 1 is the first class, 0 none that is probable enough.
        probabilities: ``[H, W]``, of these classes.
        classes: Their names.
    """

    labels: Tensor
    probabilities: Tensor
    classes: list[str] = field(default_factory=list)

    def picture(self) -> tuple[Image.Image, list[Entry]]:
        """The classes over the image, and those that there are."""
        colours = palette(len(self.classes))
        image, labels = pil_to_tensor(self.image), self.labels.int() - 1
        longer = max(self.image.size)
        if longer > LONGEST:
            size = [max(1, round(length * LONGEST / longer)) for length in reversed(self.image.size)]
            image = pil_to_tensor(self.image.resize((size[1], size[0])))
            rows, columns = (torch.arange(n) * whole // n for n, whole in zip(size, labels.shape, strict=True))
            labels = labels[rows[:, None], columns]
        labels[labels < 0] = len(colours)
        larger = max(1, LEGIBLE // longer)
        image, labels = (repeat(x, "... h w -> ... (h a) (w b)", a=larger, b=larger) for x in (image, labels))
        picture: Image.Image = to_pil_image(overlay(image, labels, colours))
        legend: list[Entry] = [(f"{row['name']}: {in_percent(row['share'])}", tint(colours[row["label"] - 1])) for row in self.rows()]
        if none := int((self.labels == 0).sum()):
            legend.append((f"none: {in_percent(none / self.labels.numel())}", None))
        return picture, legend

    def label_image(self) -> Image.Image:
        """The labels themselves as a picture, in the colours of the legend: its pixels' numbers are those of an annotation."""
        number = len(self.classes)
        if number > 255:
            return Image.fromarray(self.labels.numpy().astype(np.uint16))
        picture = Image.fromarray(self.labels.numpy().astype(np.uint8))
        picture.putpalette([0, 0, 0, *(part for colour in palette(number) for part in colour)])
        return picture

    def to_dict(self) -> dict[str, Any]:
        return {"size": list(self.labels.shape), "classes": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """The classes that there are and their shares of the image, first the largest."""
        counts = self.labels.flatten().int().bincount(minlength=len(self.classes) + 1)[1:].tolist()
        largest_first = sorted(range(len(self.classes)), key=lambda place: -counts[place])
        return [
            {"label": place + 1, "name": self.classes[place], "pixels": counts[place], "share": counts[place] / self.labels.numel()}
            for place in largest_first
            if counts[place]
        ]


class Segmenting(Predictor):
    """Predicts as train/ade20k.py evaluates: an image resized to the side that the model was trained for, and its logits back."""

    columns = ("label", "name", "pixels", "share")

    def __init__(self, model: nn.Module, described: About, options: Options) -> None:
        self.model, self.described, self.options = model, described, options
        scales = SCALES if options.multi_scale else ONE_SCALE
        self.transform = EvalTransform(described.size[0], described.mean, described.std, scales)
        self.weight: Tensor = next(model.parameters())

    def load(self, image: Image.Image) -> tuple[Image.Image, Any]:
        pixels = tv_tensors.Image(pil_to_tensor(image))
        return image, pixels if self.options.tile else self.transform(pixels)

    def find(self, loaded: list[tuple[Image.Image, Any]]) -> list[Masks]:
        return [self._find(image, seen) for image, seen in loaded]

    def _find(self, image: Image.Image, seen: Any) -> Masks:
        if tile := self.options.tile:
            overlap = tile // 4 if self.options.overlap is None else self.options.overlap
            labels, probabilities = by_tiles(seen, tile, overlap, self._tile)
        else:
            labels, probabilities = self._segment(seen, (image.height, image.width))
        labels = (labels + 1).to(torch.int16).cpu()
        probabilities = probabilities.cpu()
        check_finite(probabilities)
        if self.options.threshold:
            labels[probabilities < self.options.threshold] = 0
        return Masks(image, labels, probabilities, self.described.classes)

    def _tile(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        image = tv_tensors.Image(pixels)
        return self._segment([self.transform.normalise(times(image, scale)) for scale in self.transform.scales], image.shape[-2:])

    def _segment(self, views: list[Tensor], size: Any) -> tuple[Tensor, Tensor]:
        return segment(self.model, [view.to(self.weight) for view in views], size, self.options.multi_scale)
