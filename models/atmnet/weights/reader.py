"""Weights out of files: safetensors, ``last.pt`` of a training here, the authors' published files."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .naming import published_meta

PathLike = str | os.PathLike[str]
KINDS = (
    "an output folder of train/imagenet.py, a folder of save_pretrained, hf-hub:USER/NAME, a .safetensors, a last.pt or a published .pth"
)


@dataclass
class Checkpoint:
    """Weights with what is said of them."""

    path: Path
    weights: Mapping[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)  # of training: model, num_classes, img_size, classes, recipe, ...
    published: bool = False  # named as in the authors' implementation
    averaged: bool = False


def read_checkpoint(checkpoint: PathLike, ema: bool | None = False) -> Checkpoint:
    """The weights in an output folder (its best), a ``.safetensors``, a ``last.pt`` or a published ``.pth``.

    Args:
        ema: Take the averaged ones, of what holds both; None takes them of a published file, whose accuracy is theirs, and of no other.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be read, or has no averaged weights.
    """
    path = Path(checkpoint)
    if path.is_dir():
        names = ["best_ema.safetensors"] if ema else ["best.safetensors", "last.pt"]
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; a checkpoint is {KINDS}")
    if path.suffix != ".safetensors":
        content = read_torch(path)
        averaged = content.get("model_ema") is not None if ema is None else ema
        weights = weights_in(content, str(path), averaged)
        published = None if _of_ours(content) else published_meta(content, weights)
        meta = dict(content["meta"]) if _of_ours(content) else published or {}
        return Checkpoint(path, weights, meta, published is not None, averaged)
    if ema and path.name != "best_ema.safetensors":
        raise ValueError(f"{path} holds one set of weights: averaged ones are in an output folder's best_ema.safetensors")
    return replace(read_safetensors(path), averaged=bool(ema))


def read_safetensors(path: PathLike) -> Checkpoint:
    """The content of one file, whatever its name; raises as ``read_checkpoint``."""
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            meta = {name: _parse(text) for name, text in (file.metadata() or {}).items()}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file that can be read (atmnet.load_official takes published ones): {error}"
        ) from error
    return Checkpoint(Path(path), weights, meta)


def read_torch(path: PathLike, mmap: bool = False) -> Mapping[str, Any]:
    """The content of a file of ``torch.save``, nothing of it executed, with ``mmap`` read when used; raises as ``read_checkpoint``."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the published files hold their arguments too
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except Exception as error:  # bytes that are no checkpoint can raise anything
        raise ValueError(f"{path} is not a checkpoint that can be read (atmnet.load takes .safetensors): {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def weights_in(content: Mapping[str, Any], source: str, ema: bool) -> dict[str, Tensor]:
    """The state dict that a checkpoint's content holds or is, without the prefix of data parallelism; raises as ``read_checkpoint``."""
    ours = _of_ours(content)
    key = ("ema" if ours else "model_ema") if ema else "model"
    weights = content.get(key)
    if weights is None and not ema and not ours:
        weights = content.get("state_dict", content)  # which is where mmsegmentation keeps them
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        averaged = "averaged " if ema else ""
        raise ValueError(f"{source} has no {averaged}weights under {key!r}; it has {', '.join(map(str, list(content)[:8]))}")
    return {name.removeprefix("module."): value for name, value in weights.items()}


def metadata_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What is said of weights as safetensors holds it, text alone: JSON of what is none."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _of_ours(content: Mapping[str, Any]) -> bool:
    return "progress" in content
