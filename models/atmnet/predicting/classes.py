"""The likeliest classes of an image."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from ..drawing.text import Entry, in_percent
from ..images import describe, picture_config
from ..labels import class_names
from .options import Options
from .result import Predictor, Result, check_finite


@dataclass
class Guess:
    index: int
    name: str
    probability: float


@dataclass
class Classes(Result):
    """The likeliest classes, first the likeliest."""

    predictions: list[Guess] = field(default_factory=list)

    def picture(self) -> tuple[Image.Image, list[Entry]]:
        return self.image, [(f"{guess.name}: {in_percent(guess.probability)}", None) for guess in self.predictions]

    def to_dict(self) -> dict[str, Any]:
        return {"predictions": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(guess) for guess in self.predictions]


class Classifier(Predictor):
    """Raises ValueError where the model has no classes, or takes other than pictures."""

    columns = ("index", "name", "probability")

    def __init__(self, model: Any, options: Options) -> None:
        if options.tile or options.multi_scale:
            raise ValueError("tiles and multi_scale are for segmenters; this is a classifier")
        if not model.num_classes:
            raise ValueError("this model has no classifier: num_classes is 0")
        self.model: nn.Module = model
        self.config, self.names, self.options = picture_config(model), class_names(model), options
        self.transform: Any = create_transform(**self.config)
        self.weight: Tensor = next(model.parameters())

    def warm_up(self) -> None:
        try:
            self.model(self.sample())
        except (RuntimeError, AssertionError) as error:
            size = self.config["input_size"]
            raise ValueError(f"this {type(self.model).__name__} takes no images of {size}: {describe(error)}") from error

    def sample(self) -> Tensor:
        return self.weight.new_zeros(1, *self.config["input_size"])

    def load(self, image: Any) -> tuple[Image.Image, Tensor]:
        return image, self.transform(image)

    def find(self, loaded: list[tuple[Image.Image, Tensor]]) -> list[Classes]:
        images, inputs = zip(*loaded, strict=True)
        probabilities = self.model(torch.stack(inputs).to(self.weight)).float().softmax(1).cpu()
        check_finite(probabilities)
        return [self.classes(image, some) for image, some in zip(images, probabilities, strict=True)]

    def classes(self, image: Image.Image, probabilities: Tensor) -> Classes:
        """The likeliest of all classes."""
        chosen, indices = (found.tolist() for found in probabilities.topk(min(self.options.top, len(self.names))))
        guesses = [Guess(index, self.names[index], probability) for index, probability in zip(indices, chosen, strict=True)]
        return Classes(image, [guess for guess in guesses if guess.probability >= (self.options.threshold or 0)])
