"""A classifier from whatever holds its weights, with what its inputs and outputs mean."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.utils import ParseKwargs
from torch import Tensor, nn

from ..model import ATMNet
from ..variants import VARIANTS, canonical_name
from .hub import from_folder
from .published import PathLike, load_official, load_strict

KINDS = "an output folder of train/imagenet.py, a folder of save_pretrained, a .safetensors, a last.pt or a published .pth"

# Of a run's summary.json.
FIGURES = ("epochs", "updates", "training_seconds", "images_per_second", "processes", "device", "mixed_precision", "versions")


@dataclass
class Checkpoint:
    """Weights with what is said of them."""

    path: Path
    weights: Mapping[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)  # of training: model, num_classes, img_size, classes, recipe, ...
    published: bool = False  # named as in the authors' implementation


def open_classifier(checkpoint: PathLike | None, model: str | None = None, ema: bool = False) -> nn.Module:
    """The classifier that a checkpoint holds, in evaluation mode.

    Its ``pretrained_cfg`` tells what it was trained with, as far as the checkpoint does: ``timm.data.resolve_model_data_config`` finds
    the image size, crop and normalisation there, and ``label_names`` are its classes in order.

    Args:
        checkpoint: An output folder of train/imagenet.py (its best weights), a folder that ``save_pretrained`` or timm wrote, a
            ``.safetensors``, a ``last.pt``, a published ``.pth``, or ``"hf-hub:USER/NAME"``; None for fresh weights of ``model``.
        model: Such as ``"atmnet-t"`` or any timm model; needed where the checkpoint does not say.
        ema: Take the averaged weights, of a checkpoint that holds both.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be read, does not say which model it is, or holds another; it has no averaged weights.
    """
    name = canonical_name(model) if model else None
    if checkpoint is None:
        if ema:
            raise ValueError("averaged weights are a checkpoint's: give one")
        if name is None:
            raise ValueError("give a checkpoint, or the name of a model for one with fresh weights")
        return _create(name).eval()
    if (place := _timm_place(checkpoint)) is not None:
        return _open_place(place, name, ema).eval()
    found = read_checkpoint(checkpoint, ema)
    said = canonical_name(str(found.meta["model"])) if "model" in found.meta else None
    if said is None and name is None:
        raise ValueError(f"{found.path} does not say which model it holds: give one, such as atmnet-t")
    if said is not None and name not in (None, said):
        raise ValueError(f"{found.path} holds {said}, not {name}")
    return _build(found, said or name or "").eval()


def read_checkpoint(checkpoint: PathLike, ema: bool = False) -> Checkpoint:
    """The weights in an output folder, a ``.safetensors``, a ``last.pt`` or a published ``.pth``; raises as ``open_classifier``."""
    path = Path(checkpoint)
    if path.is_dir():
        names = ["best_ema.safetensors"] if ema else ["best.safetensors", "last.pt"]
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; a checkpoint is {KINDS}")
    if path.suffix != ".safetensors":
        return _read_torch(path, ema)
    if ema and path.name != "best_ema.safetensors":
        raise ValueError(f"{path} holds one set of weights: averaged ones are in an output folder's best_ema.safetensors")
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            meta = {name: _parse(text) for name, text in (file.metadata() or {}).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file that can be read: {error}") from error
    return Checkpoint(path, weights, meta)


def _read_torch(path: Path, ema: bool) -> Checkpoint:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the published files hold their arguments too
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint can raise anything
        raise ValueError(f"{path} is not a checkpoint that can be read: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    ours = "progress" in content
    key = ("ema" if ours else "model_ema") if ema else "model"
    weights = content.get(key, None if ours or ema else content)
    if weights is None and ema:
        raise ValueError(f"{path} has no averaged weights; it has {', '.join(map(str, list(content)[:8]))}")
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} has no weights under {key!r}; it has {', '.join(map(str, list(content)[:8]))}")
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return Checkpoint(path, weights, dict(content["meta"]) if ours else {}, published="pos_blocks.0.proj.weight" in weights)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _build(checkpoint: Checkpoint, name: str) -> nn.Module:
    if checkpoint.published and name not in VARIANTS:
        raise ValueError(f"{checkpoint.path} holds a published ATMNet, not {name}: name one of {', '.join(VARIANTS)}")
    trained = checkpoint.meta.get("recipe", {}) | checkpoint.meta
    given = argparse.Namespace()
    ParseKwargs([], "kwargs")(argparse.ArgumentParser(), given, trained.get("model_kwargs", []))
    num_classes = trained.get("num_classes", _width_of_classifier(checkpoint, name))
    model = _create(name, **given.kwargs | dict(num_classes=num_classes, pretrained=False))
    if checkpoint.published:
        load_official(model, checkpoint.weights)
    else:
        load_strict(model, checkpoint.weights, str(checkpoint.path))
    if isinstance(model, ATMNet):
        model.training_summary = _training_summary(checkpoint)
    config: Any = model.pretrained_cfg
    config["num_classes"] = num_classes
    if side := trained.get("img_size"):
        config["input_size"] = (getattr(model, "in_chans", 3), side, side)
    if crop := trained.get("crop_pct"):
        config["crop_pct"] = crop
    if (interpolation := trained.get("interpolation")) and interpolation != "random":  # which is of training alone
        config["interpolation"] = interpolation
    if classes := trained.get("classes"):
        config["label_names"] = list(classes)
    return model


def _training_summary(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """How train/imagenet.py's weights came about, of which nothing names this machine's files; None for other weights."""
    if "recipe" not in checkpoint.meta:
        return None
    summary = checkpoint.path.with_name("summary.json")
    run = json.loads(summary.read_text()) if summary.is_file() else {}
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


def _create(name: str, **kwargs: Any) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"timm knows no model {name!r}" + (f"; it knows {', '.join(near)}" if near else ""))
    return timm.create_model(name, **kwargs)


def _timm_place(checkpoint: PathLike) -> str | None:
    """A folder or a model on the Hub that has a config.json; None for anything else."""
    text = os.fspath(checkpoint)
    return text if text.startswith("hf-hub:") or (Path(text) / "config.json").is_file() else None


def _open_place(place: str, name: str | None, ema: bool) -> nn.Module:
    if ema:
        raise ValueError(f"{place} holds one set of weights, no averaged ones beside")
    try:
        model = timm.create_model(place, pretrained=True) if place.startswith("hf-hub:") else from_folder(place)
    except (RuntimeError, OSError, KeyError, ValueError) as error:  # no model of timm's, weights that do not fit, no network
        raise ValueError(f"{place} cannot be opened: {type(error).__name__}: {error}") from error
    held: Any = model.pretrained_cfg
    if name is not None and name.partition(".")[0] != held["architecture"]:
        raise ValueError(f"{place} holds {held['architecture']}, not {name}")
    return model
