"""Predictions of a classifier for pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset
from torch import Tensor, nn

from .images import describe, open_image, picture_config


@dataclass
class Guess:
    index: int
    name: str
    probability: float


@dataclass
class Prediction:
    """The likeliest classes of one image, or why there are none; the times are of this image alone."""

    image: str
    predictions: list[Guess]
    load_ms: float = 0.0  # reading, decoding, resizing
    network_ms: float = 0.0  # an equal share of its batch
    error: str | None = None


def class_names(model: nn.Module) -> list[str]:
    """Names of a classifier's outputs: by its ``pretrained_cfg``, or ImageNet's words by their number, else only numbers."""
    classifier: Any = model
    names = classifier.pretrained_cfg.get("label_names") or ()
    if isinstance(names, dict):
        names = [names[index] for index in sorted(names, key=int)]
    if len(names) != classifier.num_classes:  # none, or those of a classifier since replaced
        subset = infer_imagenet_subset(classifier)
        names = ImageNetInfo(subset).label_names() if subset else [f"class {index}" for index in range(classifier.num_classes)]
    words = (classifier.pretrained_cfg.get("label_descriptions") or {}) | _wordnet(names)
    return [words.get(name, name) for name in names]


def _wordnet(names: Sequence[str]) -> dict[str, str]:
    """The words of those names that are WordNet's: n01440764 is a tench."""
    imagenet = ImageNetInfo()
    words = {}
    for name in names:
        try:
            words[name] = imagenet.label_name_to_description(name)
        except KeyError:
            continue
    return words


@torch.inference_mode()
def predict(model: nn.Module, images: Sequence[str | Path], top: int = 5, batch_size: int = 16) -> Iterator[Prediction]:
    """The ``top`` likeliest classes of every image, in order; the model is in evaluation mode and stays where it is.

    An image that cannot be read, or of which the model makes numbers that are not finite, comes with ``error`` and no predictions. A pass
    before the first, which no time counts, sets kernels up.

    Raises:
        ValueError: the model takes no pictures of the size that it says.
    """
    config = picture_config(model)
    transform, names = create_transform(**config), class_names(model)
    weight = next(model.parameters())
    try:
        model(weight.new_zeros(1, *config["input_size"]))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"this {type(model).__name__} takes no images of {config['input_size']}: {describe(error)}") from error
    files = [str(image) for image in images]
    for start in range(0, len(images), batch_size):
        yield from _predict_batch(model, files[start : start + batch_size], transform, names, min(top, len(names)), weight)


def _predict_batch(
    model: nn.Module, images: Sequence[str], transform: Any, names: Sequence[str], top: int, weight: Tensor
) -> list[Prediction]:
    results, inputs = [], []
    for image in images:
        began = time.perf_counter()
        result = Prediction(image, [])
        try:
            inputs.append(transform(open_image(image)))
        except Exception as error:  # of reading, or of resizing what is a pixel wide
            result.error = describe(error)
        result.load_ms = 1e3 * (time.perf_counter() - began)
        results.append(result)
    if not inputs:
        return results
    began = time.perf_counter()
    probabilities, indices = model(torch.stack(inputs).to(weight)).float().softmax(1).cpu().topk(top)
    network_ms = 1e3 * (time.perf_counter() - began) / len(inputs)
    read = [result for result in results if result.error is None]
    for result, some, places in zip(read, probabilities.tolist(), indices.tolist(), strict=True):
        result.network_ms = network_ms
        if not math.isfinite(sum(some)):
            result.error = "what the network makes of it is not finite"
            continue
        result.predictions = [Guess(index, names[index], probability) for index, probability in zip(places, some, strict=True)]
    return results
