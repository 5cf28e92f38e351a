"""A model from whatever holds its weights, with what its inputs and outputs mean."""

from __future__ import annotations

import os
from typing import Any

import timm
from torch import nn

from ..tasks import CLASSIFICATION, DETECTION, NOUNS, SEGMENTATION, about_classifier
from ..variants import canonical_name, check_known
from .building import build_classifier, build_detector, build_segmenter, task_of
from .hub import create_at, from_folder
from .reader import PathLike, read_checkpoint


def open_model(checkpoint: PathLike | None, model: str | None = None, ema: bool | None = None) -> nn.Module:
    """The model that a checkpoint holds, of any task, in evaluation mode.

    Its ``about`` tells its task, classes, preprocessing and metrics, as far as the checkpoint does; ``atmnet.predict`` goes by that. All
    of the model is made as the checkpoint says: backbone, head, neck, their arguments.

    Args:
        checkpoint: An output folder of a training program (its best weights), a folder that ``save_pretrained`` or timm wrote, a
            ``.safetensors``, a ``last.pt``, a ``.pth``, published or of timm or mmseg, or ``"hf-hub:USER/NAME"``; None for fresh weights
            of the classifier ``model``.
        model: Such as ``"atmnet-t"`` or any timm model: the classifier or the backbone; needed where the checkpoint does not say.
        ema: Take the averaged weights, of a checkpoint that holds both. None takes them of a published file, whose accuracy is theirs.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be read, is damaged, does not say which model it is, or holds another; it has no averaged weights, or some
            that are not finite.
    """
    return _open(checkpoint, model, ema)


def open_classifier(checkpoint: PathLike | None, model: str | None = None, ema: bool | None = None) -> nn.Module:
    """``open_model`` of a classifier; a checkpoint of another task is refused.

    Its ``pretrained_cfg`` tells what it was trained with too: ``timm.data.resolve_model_data_config`` finds the image size, crop and
    normalisation there, and ``label_names`` are its classes in order.
    """
    return _open(checkpoint, model, ema, CLASSIFICATION)


def open_segmenter(checkpoint: PathLike, model: str | None = None, ema: bool | None = None) -> nn.Module:
    """``open_model`` of a segmenter, of train/ade20k.py or the authors'; a checkpoint of another task is refused."""
    return _open(checkpoint, model, ema, SEGMENTATION)


def open_detector(checkpoint: PathLike, model: str | None = None, ema: bool | None = None) -> nn.Module:
    """``open_model`` of a detector of train/coco.py; a checkpoint of another task is refused."""
    return _open(checkpoint, model, ema, DETECTION)


def _open(checkpoint: PathLike | None, model: str | None, ema: bool | None, wanted: str | None = None) -> nn.Module:
    name = canonical_name(model) if model else None
    if checkpoint is None:
        return _fresh(name, ema).eval()
    if (place := _timm_place(checkpoint)) is not None:
        _check_task(place, CLASSIFICATION, wanted)
        return _described(_open_place(place, name, ema)).eval()
    found = read_checkpoint(checkpoint, ema)
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


def _fresh(name: str | None, ema: bool | None) -> nn.Module:
    if ema:
        raise ValueError("averaged weights are a checkpoint's: give one")
    if name is None:
        raise ValueError("give a checkpoint, or the name of a model for one with fresh weights")
    check_known(name)
    return _described(timm.create_model(name))


def _described(model: Any) -> nn.Module:
    model.about = about_classifier(model)
    return model


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
