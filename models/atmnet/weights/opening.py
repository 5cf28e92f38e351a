"""A model from whatever holds its weights, with what its inputs and outputs mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

from atm_triton import Report

from ..tasks import CLASSIFICATION, DETECTION, NOUNS, SEGMENTATION, about_classifier
from ..variants import canonical_name, check_known
from .building import build_classifier, build_detector, build_segmenter, metrics_of, pictures_of, task_of, told_clips
from .describing import checkpoint_of
from .places import CONFIG, HUB, WEIGHTS, create_at, folder_of, from_folder, read_config
from .reader import Checkpoint, PathLike, read_checkpoint
from .swapped import swap_as_told, told_swap


def open_model(
    checkpoint: PathLike | None, model: str | None = None, ema: bool | None = None, swap: PathLike | Report | None = None
) -> nn.Module:
    """The model that a checkpoint holds, of any task, in evaluation mode.

    Its ``about`` tells its task, classes, preprocessing and metrics, as far as the checkpoint does; ``atmnet.predict`` goes by that. All
    of the model is made as the checkpoint says: backbone, head, neck, their arguments, its swaps. Its ``training_summary`` says how it was
    trained, where the checkpoint does.

    Args:
        checkpoint: An output folder of a training program (its best weights), a folder that ``save_pretrained`` or timm wrote, a
            ``.safetensors``, a ``last.pt``, a ``.pth``, published or of timm or mmseg, or ``"hf-hub:USER/NAME"``; None for fresh weights
            of the classifier ``model``.
        model: Such as ``"atmnet-t"`` or any timm model: the classifier or the backbone; needed where the checkpoint does not say.
        ema: Take the averaged weights, of a checkpoint that holds both. None takes them of a published file, whose accuracy is theirs.
        swap: The report of ``atm_triton.swap``, or its file, where the model was swapped and the checkpoint does not say how.

    Raises:
        FileNotFoundError: there is no such checkpoint, or report.
        ValueError: it cannot be read, is damaged, does not say which model it is, or holds another; it has no averaged weights, or some
            that are not finite; it was not swapped so.
    """
    return _open(checkpoint, model, ema, swap)


def open_classifier(
    checkpoint: PathLike | None, model: str | None = None, ema: bool | None = None, swap: PathLike | Report | None = None
) -> nn.Module:
    """``open_model`` of a classifier; a checkpoint of another task is refused.

    Its ``pretrained_cfg`` tells what it was trained with too: ``timm.data.resolve_model_data_config`` finds the image size, crop and
    normalisation there, and ``label_names`` are its classes in order.
    """
    return _open(checkpoint, model, ema, swap, CLASSIFICATION)


def open_segmenter(
    checkpoint: PathLike, model: str | None = None, ema: bool | None = None, swap: PathLike | Report | None = None
) -> nn.Module:
    """``open_model`` of a segmenter, of train/ade20k.py or the authors'; a checkpoint of another task is refused."""
    return _open(checkpoint, model, ema, swap, SEGMENTATION)


def open_detector(
    checkpoint: PathLike, model: str | None = None, ema: bool | None = None, swap: PathLike | Report | None = None
) -> nn.Module:
    """``open_model`` of a detector of train/coco.py; a checkpoint of another task is refused."""
    return _open(checkpoint, model, ema, swap, DETECTION)


def _open(
    checkpoint: PathLike | None, model: str | None, ema: bool | None, swap: PathLike | Report | None, wanted: str | None = None
) -> nn.Module:
    name, swaps = canonical_name(model) if model else None, told_swap(swap)
    if checkpoint is None:
        return _fresh(name, ema, swaps).eval()
    folder = folder_of(checkpoint)
    if folder is None:
        found = read_checkpoint(checkpoint, ema)
    else:
        place, config = os.fspath(checkpoint), read_config(folder)
        if ema:
            raise ValueError(f"{place} holds one set of weights, no averaged ones beside")
        if swaps:
            _check_untold(Path(folder) / CONFIG, config)
        if "task" not in config:  # of timm's layout
            _check_task(place, CLASSIFICATION, wanted)
            return _open_folder(place, folder, config, name, swaps).eval()
        found = checkpoint_of(folder, config)
    if swaps:
        _check_untold(found.path, found.meta)
        found = replace(found, meta=found.meta | {"swap": swaps})
    task = task_of(found)
    _check_task(str(found.path), task, wanted)
    said = canonical_name(str(found.meta["model"])) if "model" in found.meta else None
    if said is not None and name not in (None, said):
        raise ValueError(f"{found.path} holds {said}, not {name}")
    if task == SEGMENTATION:
        return build_segmenter(found, said or name).eval()
    if said is None and name is None:
        raise ValueError(f"{found.path} does not say which model it holds: give one, such as atmnet-t")
    if task == DETECTION:
        return build_detector(found, said or name or "").eval()
    return build_classifier(found, said or name or "").eval()


def _check_task(source: str, task: str, wanted: str | None) -> None:
    if wanted not in (None, task):
        raise ValueError(f"{source} holds a {NOUNS[task]}, not a {NOUNS[wanted]}: atmnet.open_{NOUNS[task]} opens it, or atmnet.open_model")


def _check_untold(path: Path, meta: Mapping[str, Any]) -> None:
    if meta.get("swap") or (meta.get("recipe") or {}).get("swap"):
        raise ValueError(f"{path} says itself how its model was swapped: leave swap out")


def _fresh(name: str | None, ema: bool | None, swaps: list[dict[str, Any]]) -> nn.Module:
    if ema:
        raise ValueError("averaged weights are a checkpoint's: give one")
    if name is None:
        raise ValueError("give a checkpoint, or the name of a model for one with fresh weights")
    check_known(name)
    model: Any = timm.create_model(name)
    swap_as_told(model, swaps, "the report")
    model.about = about_classifier(model)
    return model  # type: ignore[no-any-return]


def _open_folder(place: str, folder: str, config: dict[str, Any], name: str | None, swaps: list[dict[str, Any]]) -> nn.Module:
    """A classifier of timm's layout."""
    if name is not None and name.partition(".")[0] != config["architecture"]:
        raise ValueError(f"{place} holds {config['architecture']}, not {name}")
    if place.startswith(HUB) and not (Path(folder) / WEIGHTS).is_file():
        return described_by(folder, config, create_at(place))  # whose weights are in a file that timm knows of
    return described_by(folder, config, from_folder(folder, swaps))


def described_by(folder: PathLike, config: dict[str, Any], model: Any) -> Any:
    """The classifier with what its folder says of it."""
    model.about, model.training_summary = about_classifier(model), config.get("training_summary")
    if model.about.clips is not None:
        told = config.get("clips", {}) | {"frames": model.frames}
        model.about.clips = told_clips(Path(folder) / CONFIG, model.about.clips, told)
    if model.num_classes == config.get("num_classes"):  # what is said of another classifier is not said of this one
        told = Checkpoint(Path(folder) / WEIGHTS, {}, config.get("metrics", {}), config=Path(folder) / CONFIG)
        model.about.metrics, model.about.pictures = metrics_of(told), pictures_of(told)
    return model
