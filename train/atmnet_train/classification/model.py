"""The model of train/imagenet.py: built by name, started from weights, and what its outputs mean."""

import argparse
from pathlib import Path
from typing import Any, cast

import timm
from torch import nn

from ..common.errors import UsageError
from ..common.flags import check_model_name, model_kwargs
from ..common.weights import Weights, load_weights, shorten
from .images import class_folders, class_indices, split_folder
from .recipe import DROP_PATH


def build_model(args: argparse.Namespace, name: str, num_classes: int) -> nn.Module:
    kwargs: dict[str, Any] = {"num_classes": num_classes} | model_kwargs(args.model_kwargs)
    drop_path = args.drop_path if args.drop_path is not None else DROP_PATH.get(name)
    if drop_path is not None:
        kwargs["drop_path_rate"] = drop_path
    check_model_name(name)
    try:
        return timm.create_model(name, **kwargs)
    except TypeError as error:
        raise UsageError(f"--model {name} does not take what was given ({kwargs}): {error}") from error


def start_from(args: argparse.Namespace, name: str, num_classes: int, weights: Weights) -> nn.Module:
    """The model with given weights; a classifier of another size is replaced by a new one."""
    held = weights.num_classes or num_classes
    model = build_model(args, name, held)
    load_weights(model, weights)
    if held != num_classes:
        cast(Any, model).reset_classifier(num_classes)
    return model


def classes_for_eval(args: argparse.Namespace, weights: Weights, num_classes: int) -> dict[str, int] | None:
    """Which output of the checkpoint is which class folder. Wrong would be to number whatever folders there are."""
    if weights.meta.get("classes"):
        return {name: index for index, name in enumerate(weights.meta["classes"])}
    if args.dataset:
        return None
    folder = split_folder(Path(args.data_dir), args.val_split)
    names = class_folders(folder)
    classes = class_indices(names, num_classes)
    if len(classes) != num_classes:
        raise UsageError(
            f"{folder} has {len(names)} class folders ({shorten(names, 3)}), {weights.source} has {num_classes} classes "
            "and does not name them: which is which cannot be told. Parts of ImageNet keep their WordNet names (n01440764, ...)"
        )
    return classes
