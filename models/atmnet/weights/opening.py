"""A classifier from whatever holds its weights, with what its inputs and outputs mean."""

from __future__ import annotations

import os
from typing import Any

import timm
from torch import nn

from atm_triton import swap

from ..images import channels
from ..model import ATMNet
from ..variants import VARIANTS, canonical_name, check_known, model_arguments
from .fit import load_strict
from .hub import create_at, from_folder
from .published import load_published
from .reader import Checkpoint, PathLike, read_checkpoint, read_json, reason

# Of a run's summary.json.
FIGURES = ("epochs", "updates", "training_seconds", "images_per_second", "processes", "device", "mixed_precision", "versions")


def open_classifier(checkpoint: PathLike | None, model: str | None = None, ema: bool | None = None) -> nn.Module:
    """The classifier that a checkpoint holds, in evaluation mode.

    Its ``pretrained_cfg`` tells what it was trained with, as far as the checkpoint does: ``timm.data.resolve_model_data_config`` finds
    the image size, crop and normalisation there, and ``label_names`` are its classes in order.

    Args:
        checkpoint: An output folder of train/imagenet.py (its best weights), a folder that ``save_pretrained`` or timm wrote, a
            ``.safetensors``, a ``last.pt``, a ``.pth``, published or of timm or mmseg, or ``"hf-hub:USER/NAME"``; None for fresh weights
            of ``model``.
        model: Such as ``"atmnet-t"`` or any timm model; needed where the checkpoint does not say.
        ema: Take the averaged weights, of a checkpoint that holds both. None takes them of a published file, whose accuracy is theirs.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be read, is damaged, does not say which model it is, or holds another; it has no averaged weights, or some
            that are not finite.
    """
    name = canonical_name(model) if model else None
    if checkpoint is None:
        if ema:
            raise ValueError("averaged weights are a checkpoint's: give one")
        if name is None:
            raise ValueError("give a checkpoint, or the name of a model for one with fresh weights")
        check_known(name)
        return timm.create_model(name).eval()
    if (place := _timm_place(checkpoint)) is not None:
        return _open_place(place, name, ema).eval()
    found = read_checkpoint(checkpoint, ema)
    said = canonical_name(str(found.meta["model"])) if "model" in found.meta else None
    if said is None and name is None:
        raise ValueError(f"{found.path} does not say which model it holds: give one, such as atmnet-t")
    if said is not None and name not in (None, said):
        raise ValueError(f"{found.path} holds {said}, not {name}")
    return _build(found, said or name or "").eval()


def _build(checkpoint: Checkpoint, name: str) -> nn.Module:
    if checkpoint.published and name not in VARIANTS:
        raise ValueError(f"{checkpoint.path} holds a published ATMNet, not {name}: name one of {', '.join(VARIANTS)}")
    trained = (checkpoint.meta.get("recipe") or {}) | checkpoint.meta
    num_classes = trained.get("num_classes", _width_of_classifier(checkpoint, name))
    try:
        check_known(name)
        arguments = model_arguments(trained.get("model_kwargs") or []) | dict(num_classes=num_classes)
        arguments |= dict(pretrained=False, checkpoint_path="")  # whatever was started from: the weights are here
        model = timm.create_model(name, **arguments)
        if pattern := trained.get("swap"):
            swap(model, pattern)
    except Exception as error:  # of a model that is given what it does not take
        raise ValueError(f"{checkpoint.path}: cannot make its model {name}: {reason(error)}") from error
    if checkpoint.published:
        load_published(model, checkpoint.weights, str(checkpoint.path))
    else:
        load_strict(model, checkpoint.weights, str(checkpoint.path))
    if isinstance(model, ATMNet):
        model.training_summary = _training_summary(checkpoint)
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
    return model


def _training_summary(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Summary of how train/imagenet.py's weights came about, of which nothing names this machine's files; None for other weights."""
    if "recipe" not in checkpoint.meta:
        return None
    summary = checkpoint.path.with_name("summary.json")
    run = read_json(summary) if summary.is_file() else {}
    return (
        {f"val_{name}": checkpoint.meta[name] for name in ("top1", "top5", "loss", "images") if name in checkpoint.meta}
        | {name: run[name] for name in FIGURES if name in run}
        | {
            "recipe": {
                name: value
                for name, value in checkpoint.meta["recipe"].items()
                if value is not None and value is not False and value not in ("", [])
            }
        }
    )


def _width_of_classifier(checkpoint: Checkpoint, name: str) -> int:
    """The number of classes that the weights show; 0 without a classifier."""
    classifier = "head" if checkpoint.published else getattr(timm.get_pretrained_cfg(name), "classifier", None)
    weight = checkpoint.weights.get(f"{classifier}.weight")
    return 0 if weight is None else weight.shape[0]


def _timm_place(checkpoint: PathLike) -> str | None:
    """A folder or a model on the Hub that has a config.json; None for anything else."""
    text = os.fspath(checkpoint)
    return text if text.startswith("hf-hub:") or os.path.isfile(os.path.join(text, "config.json")) else None


def _open_place(place: str, name: str | None, ema: bool | None) -> nn.Module:
    if ema:
        raise ValueError(f"{place} holds one set of weights, no averaged ones beside")
    model = create_at(place) if place.startswith("hf-hub:") else from_folder(place)
    held: Any = model.pretrained_cfg
    if name is not None and name.partition(".")[0] != held["architecture"]:
        raise ValueError(f"{place} holds {held['architecture']}, not {name}")
    return model
