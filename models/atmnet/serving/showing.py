"""What is shown of a photo, whatever shows it."""

from __future__ import annotations

import io
from collections import Counter
from threading import Lock
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ..drawing.objects import LEGIBLE
from ..images import ImageError, open_image
from ..offsets import collect, draw_panel, layers
from ..offsets.draw import new_figure
from ..offsets.images import View, size_in_proportion
from ..predicting import predictor
from ..predicting.classes import Classes
from ..predicting.options import Options
from ..predicting.result import Result
from ..tasks import about

MOST = 50_000_000  # pixels of a photo; a detector holds 12 bytes for each


class Looked(NamedTuple):
    """The photo that was looked at last, its size, a picture of it in the proportions that the network saw, and its offsets
    ``[H, W, 2G]`` by layer."""

    file: str
    size: tuple[int, int]
    picture: Image.Image
    offsets: dict[str, Tensor]


class Showing:
    """A model that looks at one photo at a time, whoever asks.

    Attributes:
        described: What the model is for.
        columns: Of the results' rows.
        no_offsets: Why it cannot be shown where tokens look; empty where it can.

    Raises:
        ValueError: the model is of no known kind, or takes no pictures.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.described = model, about(model)
        way = predictor(model, Options())
        if way.whole_videos:
            raise ValueError("this is a classifier of videos, and the page shows photos: python -m atmnet predict takes videos")
        with torch.inference_mode():
            way.warm_up()
        self.columns = way.columns
        self.no_offsets = _no_offsets(model)
        self._lock = Lock()
        self._last: Looked | None = None

    @torch.inference_mode()
    def find(self, file: str, options: Options) -> Result:
        """What the model finds on a photo.

        Raises:
            ImageError: it cannot be read, is too large, or the network makes nothing of it.
        """
        way = predictor(self.model, options)
        with self._lock:
            loaded = way.load(_read(file))
            try:
                found: Result = way.find([loaded])[0]
            except (RuntimeError, ValueError) as error:  # too little memory, values that are not finite
                raise ImageError(f"in the network: {error}") from error
            return found

    def look(self, file: str, at: tuple[int, int] | None = None) -> Image.Image:
        """Where the token at a pixel (x, y) of a photo looks, or the one in the middle, in each layer.

        Raises:
            ImageError: as ``find``.
        """
        with self._lock:
            if self._last is None or self._last.file != file:
                self._last = self._collect(file)
            width, height = self._last.size
            x, y = at or (width // 2, height // 2)
            png = io.BytesIO()
            draw_panel(png, self._last.picture, self._last.offsets, [((x + 0.5) / width, (y + 0.5) / height)])
            return Image.open(png)

    def _collect(self, file: str) -> Looked:
        image = _read(file)
        height, width = size_in_proportion(self.model, image)
        pixels = View(self.model, (height, width)).pixels(image)
        try:
            offsets = collect(self.model, pixels[None].to(next(self.model.parameters())))
        except (RuntimeError, ValueError) as error:
            raise ImageError(f"in the network: {error}") from error
        times = max(1, LEGIBLE // max(height, width))
        picture = image.resize((times * width, times * height))
        return Looked(file, image.size, picture, {layer: offset[0] for layer, offset in offsets.items()})


def _read(file: str) -> Image.Image:
    return open_image(file, MOST)


def _no_offsets(model: nn.Module) -> str:
    try:
        layers(model)
        new_figure(1, 1)
    except (ValueError, ImportError) as error:
        return str(error)
    return ""


def probabilities(found: Classes) -> dict[str, float]:
    """Probabilities by name; classes that share one, such as ImageNet's two cranes, have their number with it."""
    names = Counter(guess.name for guess in found.predictions)
    return {guess.name if names[guess.name] == 1 else f"{guess.name} ({guess.index})": guess.probability for guess in found.predictions}
