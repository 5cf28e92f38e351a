"""The model of train/imagenet.py: built by name, started from weights, and what its outputs mean."""

from dataclasses import replace
from typing import Any, cast

import timm
from torch import nn

from atm_triton import swap

from ..common.errors import UsageError
from ..common.models import check_model_name, model_kwargs, try_out
from ..common.weights import Weights, load_weights, shorten
from .images import class_folders, class_indices, data_folder, split_folder
from .settings import DataSettings, ModelSettings, NetworkSettings


def build_model(settings: ModelSettings, num_classes: int, loaded: bool = False) -> nn.Module:
    """`loaded`: weights of our own follow, so that none need to be downloaded."""
    model = build_network(settings, {"num_classes": num_classes}, loaded)
    if settings.swap is not None:
        put_mixers(model, settings.swap)
    return model


def build_network(settings: NetworkSettings, known: dict[str, Any], loaded: bool = False) -> nn.Module:
    """`known`: arguments that other settings give, or the data."""
    kwargs = known | model_kwargs(settings.model_kwargs)
    if other := [f"{name}={kwargs[name]}" for name, value in known.items() if kwargs[name] != value]:
        told = ", ".join(f"{name} is {value}" for name, value in known.items())
        raise UsageError(f"--model-kwargs {' '.join(other)}: leave it out, as {told}")
    if settings.drop_path is not None:
        kwargs["drop_path_rate"] = settings.drop_path
    if loaded:
        kwargs.pop("pretrained", None)
    check_model_name(settings.model)
    try:
        return timm.create_model(settings.model, **kwargs)
    except Exception as error:  # of any model
        raise UsageError(f"--model {settings.model} does not take what was given ({kwargs}): {error}") from error


def put_mixers(model: nn.Module, pattern: str) -> None:
    """`--swap`: replaces the modules of these names, as far as they can be mixers."""
    try:
        report = swap(model, pattern)
    except ValueError as error:
        raise UsageError(f"--swap {pattern}: {error}") from error
    if not report.changed:
        row = report.left[0]
        raise UsageError(f"--swap {pattern} changes nothing: {row.name} ({row.was}) is left: {row.note}")


def start_from(settings: ModelSettings, num_classes: int, weights: Weights) -> nn.Module:
    """The model with given weights; a classifier of another size is replaced by a new one."""
    held = weights.num_classes or num_classes
    swapped = weights.meta.get("recipe", {}).get("swap")
    if swapped not in (None, settings.swap):
        raise UsageError(f"{weights.source} was trained with --swap {swapped}: give the same, not {settings.swap}")
    model = build_model(replace(settings, swap=swapped), held, loaded=True)
    load_weights(model, weights)
    if held != num_classes:
        cast(Any, model).reset_classifier(num_classes)
    if settings.swap != swapped:
        put_mixers(model, cast(str, settings.swap))
    return model


def check_outputs(model: nn.Module, settings: NetworkSettings, num_classes: int, batch: int, *size: int) -> None:
    """Refuses a model that does not make as many logits of every image of a height and width, or clip with its frames before these."""
    batch = min(batch, 2)
    shape = getattr(try_out(model, (batch, 3, *size), settings.model), "shape", None)
    if shape != (batch, num_classes):
        raise UsageError(
            f"--model {settings.model} {' '.join(settings.model_kwargs)} makes {shape} of {batch} images, not {num_classes} logits"
        )


def normalisation(model: nn.Module) -> tuple[Any, Any]:
    config = getattr(getattr(model, "module", model), "pretrained_cfg", {})
    return config.get("mean") or (0.485, 0.456, 0.406), config.get("std") or (0.229, 0.224, 0.225)


def classes_for_eval(settings: DataSettings, weights: Weights, num_classes: int) -> dict[str, int] | None:
    """Outputs of the checkpoint by class folder. Wrong would be to number whatever folders there are."""
    if weights.meta.get("classes"):
        return {name: index for index, name in enumerate(weights.meta["classes"])}
    if settings.dataset:
        return None
    folder = split_folder(data_folder(settings), settings.val_split)
    names = class_folders(folder)
    classes = class_indices(names, num_classes)
    if len(classes) != num_classes:
        raise UsageError(
            f"{folder} has {len(names)} class folders ({shorten(names, 3)}), {weights.source} has {num_classes} classes "
            "and does not name them: which is which cannot be told. Parts of ImageNet keep their WordNet names (n01440764, ...)"
        )
    return classes
