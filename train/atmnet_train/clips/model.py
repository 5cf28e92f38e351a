"""The network of train/video.py: built by name, started from weights of videos or of images."""

from typing import Any, cast

import timm
from atmnet import ATMNet, inflate
from atmnet.variants import VIDEO, model_arguments
from torch import nn

from ..classification.model import build_network, check_outputs
from ..common.errors import UsageError
from ..common.weights import Weights, load_weights
from .settings import Settings


def build_model(settings: Settings, num_classes: int, loaded: bool = False) -> nn.Module:
    return build_network(settings.model, {"num_classes": num_classes, "frames": settings.data.frames}, loaded)


def check_model(model: nn.Module, settings: Settings, num_classes: int) -> None:
    data = settings.data
    check_outputs(model, settings.model, num_classes, 1, data.frames, data.img_size, data.img_size)


def start_from(settings: Settings, num_classes: int, weights: Weights) -> tuple[nn.Module, str]:
    """The model with given weights, and what was made of them; a classifier of another size is replaced by a new one."""
    name, held = settings.model.model, weights.meta.get("model")
    known = weights.num_classes or num_classes
    other = ", with a new classifier" if known != num_classes else ""
    if held == name:
        model = build_model(settings, known, loaded=True)
        load_weights(model, weights)
        if known != num_classes:
            cast(Any, model).reset_classifier(num_classes)
        return model, f"starting from {weights.source}{other}"
    images = name.removesuffix("_video")
    if name not in VIDEO or (held != images and not weights.published):
        raise UsageError(f"{weights.source} holds {held}, not --model {name}, nor {images}, the same network of images")
    arguments = model_arguments(weights.meta.get("recipe", {}).get("model_kwargs") or []) | {"num_classes": known, "pretrained": False}
    still = timm.create_model(images, **arguments)
    load_weights(still, weights)
    try:
        model = inflate(cast(ATMNet, build_model(settings, num_classes, loaded=True)), cast(ATMNet, still))
    except ValueError as error:
        raise UsageError(f"--init-from {weights.source}: {error}") from error
    return model, f"starting from {weights.source}, a network of images{other}"
