"""Names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn


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


def nameless(number: int) -> list[str]:
    """Names of classes that have none."""
    return [f"class {label}" for label in range(1, number + 1)]
