"""Folders of the Hugging Face Hub's layout, here or on the Hub, and timm's classifiers out of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import snapshot_download
from timm.models import is_model
from torch import nn

from .fit import check_told, load_strict
from .reader import PathLike, check_finite, read_json, read_safetensors, reason
from .swapped import swap_as_told

HUB = "hf-hub:"
CONFIG, WEIGHTS, PICTURES = "config.json", "model.safetensors", "pictures"


def folder_of(place: PathLike) -> str | None:
    """The folder itself, or where ``hf-hub:USER/NAME``, also with ``@REVISION``, is after its download; None for any other path.

    Raises:
        ValueError: what is on the Hub cannot be downloaded, or is no model.
    """
    text = os.fspath(place)
    if not text.startswith(HUB):
        return text if os.path.isfile(os.path.join(text, CONFIG)) else None
    name, _, revision = text.removeprefix(HUB).partition("@")
    try:
        folder = download(name, revision=revision or None)
    except Exception as error:  # no network, no such repository, none that may be read
        raise ValueError(f"{text} cannot be opened: {reason(error)}") from error
    if not os.path.isfile(os.path.join(folder, CONFIG)):
        raise ValueError(f"{text} has no {CONFIG}: it is no model of this library's or of timm's")
    return folder


def download(name: str, **options: Any) -> str:
    """Folder of what a model needs of a repository on the Hub."""
    return snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **options)


def from_folder(folder: PathLike, swaps: list[dict[str, Any]] | None = None, **kwargs: Any) -> nn.Module:
    """The classifier of a folder as ``save_pretrained`` or timm's ``save_for_hf`` writes it, with its weights verified.

    Args:
        folder: Its path.
        swaps: How the model was swapped, where the folder does not say.
        **kwargs: Of timm's ``create_model``.

    Raises:
        ValueError: with the name of what is damaged, does not fit, or is of no model that timm knows.
    """
    path, told = Path(folder) / WEIGHTS, swaps or read_config(folder).get("swap")
    if told:
        model = unloaded(folder, told, **kwargs)
        load_strict(model, read_verified(path), str(path))
        return model
    overlay = dict[str, Any]()
    if path.is_file():
        check_told(read_verified(path), str(path))  # timm verifies nothing
        overlay = dict(pretrained_cfg_overlay=dict(source="", file=str(path)))  # timm before 1.0.30 cannot read these by itself
    return create_at(f"local-dir:{os.fspath(folder)}", **overlay, **kwargs)


def unloaded(folder: PathLike, swaps: Any, **kwargs: Any) -> nn.Module:
    """The same without its weights."""
    model = create_at(f"local-dir:{os.fspath(folder)}", **kwargs, pretrained=False)
    if swaps:
        swap_as_told(model, swaps, str(Path(folder) / CONFIG))
    return model


def read_verified(path: Path) -> Any:
    """Weights of a folder; raises as ``read_safetensors``, also for some that are not finite."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: the folder is not whole")
    weights = read_safetensors(path).weights
    check_finite(path, weights)
    return weights


def create_at(place: str, pretrained: bool = True, **kwargs: Any) -> nn.Module:
    """The model of a place of timm's, ``hf-hub:`` or ``local-dir:``; raises as ``from_folder``."""
    try:
        model = timm.create_model(place, pretrained=pretrained, **kwargs)
    except Exception as error:  # no model of timm's, arguments that it does not take, weights that do not fit, no network
        raise ValueError(f"{place.removeprefix('local-dir:')} cannot be opened: {reason(error)}") from error
    check_finite(place.removeprefix("local-dir:"), model.state_dict())
    return model


def read_config(folder: PathLike) -> dict[str, Any]:
    """Description of a model by its folder: of a classifier timm's, of other models with a ``task``; raises as ``from_folder``."""
    path = Path(folder) / CONFIG
    config = read_json(path)
    for name in ("model_args", "pretrained_cfg", "metrics", "training_summary", "clips"):
        if not isinstance(config.get(name, {}), dict):
            raise ValueError(f"{path}: {name} holds a {type(config[name]).__name__}, not values by name")
    if "task" in config:
        return config
    if not isinstance(config.get("architecture"), str):
        raise ValueError(f"{path} does not say which architecture the model has")
    if not is_model(config["architecture"]):
        raise ValueError(f"{path} is of the architecture {config['architecture'][:80]!r}, which timm does not know")
    names, number = config.get("label_names"), config.get("num_classes", 0)
    if not isinstance(names, (list, dict, type(None))) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{path} says label_names {str(names)[:40]!r} and num_classes {str(number)[:40]!r}, which cannot be")
    return config
