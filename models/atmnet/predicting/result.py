"""What all predictions of an image have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from atm_triton.strict_json import dumps

from ..drawing.text import Entry, with_legend
from ..images import ImageError, endings, open_image


@dataclass
class Result(ABC):
    """What a model has found on ``image``."""

    image: Image.Image

    @abstractmethod
    def picture(self) -> tuple[Image.Image, list[Entry]]:
        """The image with what was found on it, and what a legend explains, most important first."""

    def draw(self) -> Image.Image:
        """A picture of it, with its legend."""
        return with_legend(*self.picture())

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The same in values that JSON has."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """A row of a table for each class or object."""

    def to_json(self) -> str:
        return dumps(self.to_dict())


def check_finite(values: Tensor) -> None:
    """Refuse what no picture and no table could show."""
    if not values.isfinite().all():
        raise ValueError("what the network makes of it is not finite")


class Predictor(ABC):
    """A model with its way to look at images."""

    columns: ClassVar[tuple[str, ...]]  # of a result's rows
    whole_videos: ClassVar[bool] = False  # one result for a video, not for each of its frames

    def open(self, file: str | os.PathLike[str]) -> Any:
        """What ``load`` takes of a file, which raises ValueError where it is none for this model."""
        try:
            return open_image(file)
        except ImageError as error:
            if os.path.splitext(file)[1].lower() in endings() or not os.path.isfile(file):
                raise
            raise ImageError(f"{error}; it would be taken for a video if its name ended in .mp4 or the like") from error

    @abstractmethod
    def load(self, image: Any) -> Any:
        """What the network needs of an image, on the CPU."""

    @abstractmethod
    def find(self, loaded: list[Any]) -> list[Any]:
        """A ``Result`` for each."""

    def warm_up(self) -> None:  # noqa: B027 (there may be nothing to do)
        """Set kernels up, where the size of what comes is known."""
