"""Segmenters and detectors as a folder's config.json says them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..tasks import DETECTION, NOUNS, SEGMENTATION, about, parts_of
from .places import CONFIG, WEIGHTS, read_verified
from .reader import Checkpoint, PathLike, check_meta

# What a config must say, by task.
NEEDED = {SEGMENTATION: ("model", "head", "num_classes", "mean", "std"), DETECTION: ("model", "detector", "num_classes", "mean", "std")}


def describe(model: Any) -> dict[str, Any]:
    """What ``create_segmenter`` or ``create_detector`` needs to make the model again, by the names of checkpoints, and its ``about``.

    Raises:
        ValueError: it was not made by these, or with arguments that cannot be written down.
    """
    described, parts = about(model), parts_of(model)
    if parts is None:
        raise ValueError(f"this {type(model).__name__} was not made by atmnet.create_{NOUNS[described.task]}")
    pyramid = model if described.task == SEGMENTATION else model.backbone
    said = dict(
        task=described.task,
        **parts,
        model_kwargs=_pairs(pyramid.backbone.arguments),
        num_classes=len(described.classes),
        classes=described.classes,
        mean=list(described.mean),
        std=list(described.std),
    )
    if described.task == SEGMENTATION:
        return said | dict(crop_size=described.size[0])
    transform = model.transform
    return said | dict(min_size=list(transform.min_size), max_size=transform.max_size, category_ids=described.category_ids)


def _pairs(arguments: Mapping[str, Any]) -> list[str]:
    """Write arguments as ``model_arguments`` reads them."""
    if wrong := [name for name, value in arguments.items() if not _is_plain(value)]:
        raise ValueError(f"{', '.join(wrong)} of timm's model cannot be written down: give values of plain numbers and text")
    return [f"{name}={value!r}" for name, value in arguments.items()]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    return value is None or isinstance(value, (bool, int, float, str))


def checkpoint_of(folder: PathLike, config: Mapping[str, Any]) -> Checkpoint:
    """The content of a folder of a segmenter or detector.

    Raises:
        FileNotFoundError: it has no weights.
        ValueError: with the file that is damaged, or says what cannot be.
    """
    weights = Path(folder) / WEIGHTS
    return Checkpoint(weights, read_verified(weights), check_config(Path(folder) / CONFIG, config), config=Path(folder) / CONFIG)


def check_config(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of weights by a config; raises as ``checkpoint_of``."""
    meta = check_meta(path, config.get("metrics", {}) | dict(config))
    task = meta["task"]
    if not isinstance(task, str) or task not in NEEDED:
        raise ValueError(f"{path} is of the task {str(task)[:40]!r}: it can be {' or '.join(NEEDED)}")
    if lost := [name for name in NEEDED[task] if meta.get(name) is None]:
        raise ValueError(f"{path} does not say its {', '.join(lost)}, without which a {NOUNS[task]} cannot be made")
    for name in ("classes", "category_ids"):
        if name in meta and (not isinstance(meta[name], list) or len(meta[name]) != meta["num_classes"]):
            raise ValueError(f"{path} has {meta['num_classes']} classes, and {name} {str(meta[name])[:40]}, which are not as many")
    for name, least in (("mean", -math.inf), ("std", 0)):
        if not isinstance(meta[name], list) or not all(type(value) in (int, float) and least < value < math.inf for value in meta[name]):
            raise ValueError(f"{path} says {name} {str(meta[name])[:40]!r}, which cannot be")
    return meta
