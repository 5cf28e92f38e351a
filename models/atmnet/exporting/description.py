"""What a model's images and outputs mean, for a file that holds it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from ..dense.segmentation import Segmenter
from ..images import channels
from ..images import data_config as checked_config
from ..labels import class_names
from ..tasks import about, is_of_videos, pipeline_tag


def data_config(model: nn.Module) -> dict[str, Any] | None:
    """timm's configuration of the images; None of a network that timm has not made."""
    net: Any = model.backbone.net if isinstance(model, Segmenter) else model
    return checked_config(net) if getattr(net, "pretrained_cfg", None) else None


def metadata_of(model: nn.Module, img_size: tuple[int, int], classes: Sequence[str] | None) -> dict[str, str]:
    """Task, normalisation, crop and classes, as far as they are known; all but texts are JSON."""
    described: dict[str, Any] = {"task": pipeline_tag(model), "input_size": [channels(model), *img_size]}
    if is_of_videos(model):
        clips: Any = about(model).clips
        described |= {"frames": cast(Any, model).frames, "sampling": clips.sampling, "frame_stride": clips.stride}
    if config := data_config(model):
        described |= {name: config[name] for name in ("mean", "std", "interpolation")}
        if isinstance(model, Segmenter):
            described["interpolation"] = "bilinear"  # which evaluates it so, whatever its backbone was trained with
        else:
            described["crop_pct"] = config["crop_pct"]
            classes = classes or class_names(model)
    if classes:
        described["classes"] = list(classes)
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in described.items()}
