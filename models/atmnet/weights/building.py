"""Models as their checkpoints describe them, with their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..clips import CROPS, SAMPLINGS, Clips
from ..dense.detection import create_detector
from ..dense.segmentation import create_segmenter
from ..images import channels
from ..tasks import CLASSIFICATION, DETECTION, SEGMENTATION, SIDE, About, about_classifier, about_detector, about_segmenter
from ..variants import VARIANTS, check_known, model_arguments, variant_of
from .fit import load_strict
from .places import PICTURES
from .published import load_published
from .reader import Checkpoint, read_json, reason
from .swapped import swap_as_told

# The attributes of Clips, as a training calls them.
OF_CLIPS = dict(frames="frames", sampling="sampling", stride="frame_stride", number="clips", crops="crops")

# Of a run's summary.json.
FIGURES = ("epochs", "updates", "training_seconds", "images_per_second", "processes", "device", "mixed_precision", "versions")

METRICS = ("top1", "top5", "loss", "mIoU", "mAcc", "aAcc", "images")  # of a validation; and all of boxes and masks
OF_DETECTION = ("box_", "mask_")

# Where a detector's weights show how wide its pyramid is.
WIDTHS = ("rpn.head.cls_logits.weight", "head.classification_head.cls_logits.weight")

# What a run leaves to be looked at; of the pictures of single images, the first.
OF_A_RUN = "pictures/*.png", "confusion.png", "wrong.png"  # of averaged weights with ema_ in front
SINGLE = 3


def task_of(checkpoint: Checkpoint) -> str:
    if checkpoint.meta.get("detector") is not None:
        return DETECTION
    return SEGMENTATION if checkpoint.meta.get("head") is not None else CLASSIFICATION


def build_segmenter(checkpoint: Checkpoint, name: str | None) -> nn.Module:
    trained = _said(checkpoint)
    head, neck, arguments = trained["head"], trained.get("neck"), dict[str, Any]()
    if checkpoint.published:
        name = name or variant_of(trained["depths"])
        # Of another width than those published, too.
        arguments["dims"] = tuple(len(checkpoint.weights[f"backbone.norm_{i}.weight"]) for i in range(len(trained["depths"])))
    if name is None:
        raise ValueError(f"{checkpoint.path} does not say which backbone its segmenter has: give one, such as atmnet-t")
    classes, number = _classes(checkpoint, trained)

    def create(**kwargs: Any) -> Any:
        return create_segmenter(name, head, neck, number, **kwargs)

    model = _create(checkpoint, f"segmenter {head} on {name}", create, arguments)
    _load(model, checkpoint)
    model.backbone.net.pretrained_cfg.update(_normalisation(trained))
    return _described(model, checkpoint, about_segmenter(model, classes, trained.get("crop_size") or SIDE))


def build_detector(checkpoint: Checkpoint, name: str) -> nn.Module:
    trained = _said(checkpoint)
    detector, neck = trained["detector"], trained.get("neck") or "fpn"
    classes, number = _classes(checkpoint, trained)
    sizes = {key: value for key in ("min_size", "max_size") if (value := trained.get(key))}
    if "min_size" in sizes:
        sizes["min_size"] = tuple(sorted(sizes["min_size"]))
    width = next((checkpoint.weights[key].shape[1] for key in WIDTHS if key in checkpoint.weights), 256)

    def create(**kwargs: Any) -> Any:
        return create_detector(name, detector, neck, number, **dict(dim=width) | sizes | kwargs)

    model = _create(checkpoint, f"detector {detector} on {name}", create, {})
    _load(model, checkpoint)
    for key, values in _normalisation(trained).items():
        setattr(model.transform, f"image_{key}", values)
    ids = trained.get("category_ids")
    fitting = isinstance(ids, list) and len(ids) == number and all(type(one) is int for one in ids)
    return _described(model, checkpoint, about_detector(model, classes, ids if fitting and ids else ()))


def build_classifier(checkpoint: Checkpoint, name: str) -> nn.Module:
    if checkpoint.published and name not in VARIANTS:
        raise ValueError(f"{checkpoint.path} holds a published ATMNet, not {name}: name one of {', '.join(VARIANTS)}")
    trained = _said(checkpoint)
    num_classes = trained.get("num_classes", _width_of_classifier(checkpoint, name))

    def create(**kwargs: Any) -> Any:
        check_known(name)
        known = {name: trained[name] for name in ("frames",) if name in trained}
        return timm.create_model(name, **kwargs | known | dict(num_classes=num_classes, checkpoint_path=""))

    model = _create(checkpoint, f"model {name}", create, {})
    _load(model, checkpoint)
    config: Any = model.pretrained_cfg
    config["num_classes"] = num_classes
    if side := trained.get("img_size"):
        config["input_size"] = (channels(model), side, side)
    if crop := trained.get("crop_pct"):
        config["crop_pct"] = crop
    if (interpolation := trained.get("interpolation")) and interpolation != "random":  # which is of training alone
        config["interpolation"] = interpolation
    if classes := trained.get("classes"):
        config["label_names"] = list(classes)
    about = about_classifier(model)
    if about.clips is not None:
        told = {name: trained[said] for name, said in OF_CLIPS.items() if said in trained}
        about.clips = told_clips(checkpoint.path, about.clips, told)
    return _described(model, checkpoint, about)


def _described(model: Any, checkpoint: Checkpoint, about: About) -> nn.Module:
    about.metrics, about.pictures = metrics_of(checkpoint), pictures_of(checkpoint)
    model.about, model.training_summary = about, _training_summary(checkpoint)
    return model  # type: ignore[no-any-return]


def told_clips(source: Path, default: Clips, told: Mapping[str, Any]) -> Clips:
    """How videos are looked at, by what ``source`` tells of the attributes.

    Raises:
        ValueError: it tells what cannot be.
    """
    found = replace(default, **{name: told[name] for name in OF_CLIPS if name in told})
    numbers = found.frames, found.stride, found.number, found.crops
    if found.sampling not in SAMPLINGS or not all(type(number) is int and number > 0 for number in numbers) or found.crops not in CROPS:
        raise ValueError(f"{source} is damaged, or not ours: it says that videos are looked at as {found}")
    return found


def _training_summary(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Summary of how a training program's weights came about, of which nothing names this machine's files; None for other weights."""
    if "recipe" not in checkpoint.meta:
        return checkpoint.meta.get("training_summary")
    summary = checkpoint.path.with_name("summary.json")
    run = read_json(summary) if summary.is_file() else {}
    return {name: run[name] for name in FIGURES if name in run} | {
        "recipe": {
            name: value
            for name, value in checkpoint.meta["recipe"].items()
            if value is not None and value is not False and value not in ("", [])
        }
    }


def _width_of_classifier(checkpoint: Checkpoint, name: str) -> int:
    """The number of classes that the weights show; 0 without a classifier."""
    classifier = "head" if checkpoint.published else getattr(timm.get_pretrained_cfg(name), "classifier", None)
    weight = checkpoint.weights.get(f"{classifier}.weight")
    return 0 if weight is None else weight.shape[0]


def metrics_of(checkpoint: Checkpoint) -> dict[str, float]:
    """Metrics of the validation that weights were saved for; none of others."""
    return {
        name: float(value)
        for name, value in sorted(checkpoint.meta.items())  # in safetensors they stand in any order
        if (name in METRICS or name.startswith(OF_DETECTION)) and isinstance(value, (int, float))
    }


def pictures_of(checkpoint: Checkpoint) -> list[Path]:
    """Pictures beside the weights of a training program or of a folder of ``save_pretrained``."""
    folder = checkpoint.path.parent
    if checkpoint.config is not None:
        return sorted(folder.glob(f"{PICTURES}/*.jpg"))
    if "recipe" not in checkpoint.meta:
        return []
    patterns = ["ema_" * checkpoint.averaged + pattern for pattern in OF_A_RUN] + ["curves.png"]
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))[:SINGLE]]


def _said(checkpoint: Checkpoint) -> dict[str, Any]:
    return (checkpoint.meta.get("recipe") or {}) | checkpoint.meta


def _classes(checkpoint: Checkpoint, trained: dict[str, Any]) -> tuple[list[str], int]:
    classes = list(trained.get("classes") or [])
    number = trained.get("num_classes") or len(classes)
    if not number:
        raise ValueError(f"{checkpoint.told_in} does not say its classes nor their number: it is damaged, or not of this library")
    return (classes if len(classes) == number else []), number


def _normalisation(trained: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Of a folder, whatever timm says of the backbone by now."""
    return {name: tuple(trained[name]) for name in ("mean", "std") if trained.get(name)}


def _create(checkpoint: Checkpoint, what: str, create: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        given = model_arguments(_said(checkpoint).get("model_kwargs") or [])
        return create(**arguments | given | dict(pretrained=False))  # whatever was started from: the weights are here
    except Exception as error:  # of a model that is given what it does not take
        raise ValueError(f"{checkpoint.told_in}: cannot make its {what}: {reason(error)}") from error


def _load(model: nn.Module, checkpoint: Checkpoint) -> None:
    if told := _said(checkpoint).get("swap"):
        swap_as_told(model, told, str(checkpoint.told_in))
    load = load_published if checkpoint.published else load_strict
    load(model, checkpoint.weights, str(checkpoint.path))
