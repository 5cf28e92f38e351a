"""What a model is for: task, classes, preprocessing, and how well it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from timm.data import resolve_model_data_config
from torch import nn
from torchvision.models.detection import MaskRCNN, RetinaNet

from .clips import Clips
from .dense.backbone import Backbone
from .dense.cascade import CascadeRoIHeads
from .dense.heads import UPerHead
from .dense.necks import ATMFPN
from .dense.segmentation import Segmenter
from .images import channels
from .labels import class_names, nameless
from .model import ATMNet

CLASSIFICATION, SEGMENTATION, DETECTION = "classification", "segmentation", "detection"
NOUNS = {CLASSIFICATION: "classifier", SEGMENTATION: "segmenter", DETECTION: "detector"}
SIDE = 512  # of a segmenter that does not say: the paper's


@dataclass
class About:
    """Description of a model, as far as its checkpoint says it.

    Attributes:
        task: ``"classification"``, ``"segmentation"`` or ``"detection"``.
        name: Such as ``"semantic-fpn on atmnet_t with fpn"``.
        classes: Their names in order.
        size: Of images as the network sees them: of a classifier height and width, of a segmenter the shorter side, of a detector
            the shorter side and the most of the longer.
        mean, std: Of the normalisation, by channel, of values from 0 to 1.
        category_ids: Of a detector, what COCO's files call the classes.
        metrics: Of the validation, of weights that were saved for it.
        clips: Of a classifier of videos, what it looks at of one.
        pictures: Files that show the training or what it found, which go into a folder of ``save_pretrained``.
    """

    task: str
    name: str
    classes: list[str]
    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    category_ids: list[int] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    clips: Clips | None = None
    pictures: list[Path] = field(default_factory=list, repr=False, compare=False)


def about(model: nn.Module) -> About:
    """What ``open_model`` found out about a model, or what the model itself tells.

    Raises:
        ValueError: it is no classifier of timm's, and no segmenter or detector of this library.
    """
    known: Any = getattr(model, "about", None)
    if isinstance(known, About):
        return replace(known, classes=class_names(model)) if known.task == CLASSIFICATION else known  # its classifier may be another now
    if isinstance(model, Segmenter):
        return about_segmenter(model, [], SIDE)
    if isinstance(model, (RetinaNet, MaskRCNN)):
        return about_detector(model, [])
    if hasattr(model, "pretrained_cfg") and hasattr(model, "num_classes"):
        return about_classifier(model)
    raise ValueError(f"cannot tell what a {type(model).__name__} predicts: give what atmnet.open_model opens, or a classifier of timm's")


def pipeline_tag(model: nn.Module) -> str:
    """The task by Hugging Face's names."""
    if is_of_videos(model):
        return "video-classification"
    if isinstance(model, (RetinaNet, MaskRCNN)):
        return "object-detection"
    return "image-segmentation" if isinstance(model, Segmenter) else "image-classification"


def is_of_videos(model: nn.Module) -> bool:
    """Tell a network that takes clips from one that takes images."""
    return isinstance(model, ATMNet) and model.time is not None


def input_shape(model: nn.Module, size: tuple[int, int]) -> tuple[int, ...]:
    """Shape of an image of that height and width, or of a clip of as many frames as a network of videos is meant for."""
    frames = [int(cast(Any, model).frames)] if is_of_videos(model) else []
    return channels(model), *frames, *size


def about_classifier(model: Any) -> About:
    config = resolve_model_data_config(model)
    name = str(model.pretrained_cfg.get("architecture") or type(model).__name__)
    size, clips = tuple(config["input_size"][1:]), Clips(model.frames) if is_of_videos(model) else None
    return About(CLASSIFICATION, name, class_names(model), size, tuple(config["mean"]), tuple(config["std"]), clips=clips)


def about_segmenter(model: Segmenter, classes: Sequence[str], side: int) -> About:
    config, head = resolve_model_data_config(model.backbone.net), cast(Any, model.decode_head)
    names = list(classes) or nameless(head.conv_seg.out_channels)
    return About(SEGMENTATION, _title(model), names, (side,), tuple(config["mean"]), tuple(config["std"]))


def about_detector(model: RetinaNet | MaskRCNN, classes: Sequence[str], category_ids: Sequence[int] = ()) -> About:
    transform: Any = model.transform
    number = num_labels(model)
    return About(
        DETECTION,
        _title(model),
        list(classes) or nameless(number),
        (transform.min_size[-1], transform.max_size),
        tuple(transform.image_mean),
        tuple(transform.image_std),
        list(category_ids) or list(range(1, number + 1)),
    )


def num_labels(model: Any) -> int:
    """Number of a detector's classes, without the background."""
    if isinstance(model, RetinaNet):
        return int(model.head.classification_head.num_classes)  # type: ignore[union-attr, operator, arg-type]
    heads = model.roi_heads
    return int(getattr(heads, "stages", [heads])[0].box_predictor.cls_score.out_features) - 1


def parts_of(model: Any) -> dict[str, str | None] | None:
    """What ``create_segmenter`` and ``create_detector`` call the parts of a model: ``model``, the backbone, ``head`` or ``detector``, and
    ``neck``; None of one that they did not make."""
    pyramid = model if isinstance(model, Segmenter) else model.backbone
    if not isinstance(getattr(pyramid, "backbone", None), Backbone):
        return None
    if isinstance(model, Segmenter):
        kind = {"head": "upernet" if isinstance(model.decode_head, UPerHead) else "semantic-fpn"}
    elif isinstance(model, RetinaNet):
        kind = {"detector": "retinanet"}
    else:
        kind = {"detector": "cascade-mask-rcnn" if isinstance(model.roi_heads, CascadeRoIHeads) else "mask-rcnn"}
    neck = None if pyramid.neck is None else "atmfpn" if isinstance(pyramid.neck, ATMFPN) else "fpn"
    return {"model": pyramid.backbone.name, **kind, "neck": neck}


def _title(model: Any) -> str:
    parts = parts_of(model)
    if parts is None:
        return type(model).__name__
    name, kind, neck = parts.values()
    return f"{kind} on {name}" + (f" with {neck}" if neck else "")
