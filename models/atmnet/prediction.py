"""What a classifier sees in pictures."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key
from torch import Tensor, nn

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for broken files of the various formats


@dataclass
class Guess:
    index: int
    name: str
    probability: float


@dataclass
class Prediction:
    """The likeliest classes of one image, or the error that kept it from being read; the times are of this image alone."""

    image: str
    predictions: list[Guess]
    load_ms: float = 0.0  # reading, decoding, resizing
    network_ms: float = 0.0  # an equal share of its batch
    error: str | None = None


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """In RGB and upright, as viewers show it; raises what Pillow raises."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def find_images(places: Sequence[str]) -> list[Path]:
    """The images that files, folders (with all folders inside) and glob patterns name, each once, in order.

    Raises:
        FileNotFoundError: a place names no image.
    """
    endings = get_img_extensions(as_set=True)
    found: list[Path] = []
    for place in places:
        matches = [Path(place)] if Path(place).exists() else [Path(file) for file in glob.glob(place, recursive=True)]
        images = [file for match in matches for file in ([match] if match.is_file() else match.rglob("*"))]
        named = set(matches)  # whatever their endings
        images = [file for file in images if file.is_file() and (file in named or file.suffix.lower() in endings)]
        if not images:
            raise FileNotFoundError(
                f"there is no image {place}: give files, folders or patterns such as 'photos/*.jpg'; in folders, endings tell "
                f"images: {' '.join(sorted(endings))}"
            )
        found += sorted(images, key=lambda file: natural_key(str(file)))
    return list(dict.fromkeys(found))


def class_names(model: nn.Module) -> list[str]:
    """What a classifier's outputs mean: by its ``pretrained_cfg``, or ImageNet's words by their number, else only numbers."""
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

    An image that cannot be read comes with ``error`` and no predictions. A pass before the first, which no time counts, sets kernels up.
    """
    config = resolve_model_data_config(model)
    if config["input_size"][0] != 3:
        raise ValueError(f"pictures have 3 channels, and this {type(model).__name__} takes images of {config['input_size'][0]}")
    transform, names = create_transform(**config), class_names(model)
    weight = next(model.parameters())
    model(weight.new_zeros(1, *config["input_size"]))
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
        except UNREADABLE as error:
            result.error = " ".join(str(error).split())
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
        result.predictions = [Guess(index, names[index], probability) for index, probability in zip(places, some, strict=True)]
    return results
