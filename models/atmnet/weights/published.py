"""Weights on disk: the published checkpoints, and ours in safetensors."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from atm_triton.files import write_atomically

from ..model import ATMNet

PathLike = str | os.PathLike[str]

# Published name -> ours, first match wins. `blocks.i.j.downsample` stands in the last block of stage i and feeds stage i + 1.
RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"patch_embed\.proj\.", r"stem."),
    (r"pos_blocks\.(\d+)\.proj\.", r"stages.\1.peg."),
    (r"blocks\.(\d+)\.\d+\.downsample\.proj\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"blocks\.(\d+)\.(\d+)\.offset_layer\.0\.", r"stages.\1.blocks.\2.offset.norm_"),
    (r"blocks\.(\d+)\.(\d+)\.offset_layer\.1\.", r"stages.\1.blocks.\2.offset."),
    (r"blocks\.(\d+)\.(\d+)\.atm\.atm_([chw])\.", r"stages.\1.blocks.\2.mixer.fc_\3."),
    (r"blocks\.(\d+)\.(\d+)\.atm\.fusion\.", r"stages.\1.blocks.\2.mixer.logits."),
    (r"blocks\.(\d+)\.(\d+)\.atm\.", r"stages.\1.blocks.\2.mixer."),
    (r"blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"head\.", r"head.fc."),
]


def from_official(name: str) -> str:
    """Our name of a published parameter."""
    for pattern, ours in RENAMES:
        renamed, found = re.subn("^" + pattern, ours, name)
        if found:
            return renamed
    return name


def _unwrap(model: Any) -> Any:
    """The model inside the wrappers of torch.compile and of data parallelism."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def load_strict(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load all or nothing, listing what does not fit."""
    own = model.state_dict()
    problems = [f"missing: {name} {list(own[name].shape)}" for name in own if name not in weights]
    problems += [f"unexpected: {name} {list(weights[name].shape)}" for name in weights if name not in own]
    problems += [
        f"shape: {name} is {list(weights[name].shape)} in the checkpoint, {list(own[name].shape)} in the model"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    if problems:
        listed = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
        if all("head.fc." in problem for problem in problems):
            listed.append("only the classifier differs: load with the checkpoint's number of classes, then model.reset_classifier(...)")
        raise ValueError("\n  ".join([f"{source} does not fit this {type(model).__name__}:", *listed]))
    model.load_state_dict(weights)


def load_official(model: nn.Module, path_or_state_dict: PathLike | Mapping, ema: bool = False) -> nn.Module:
    """Load a checkpoint of the published implementation into one of our models, and return the model.

    Args:
        model: An ATMNet, or its ``features_only`` form, which takes the backbone and leaves its own per-stage norms as they are. A model
            without a classifier (``num_classes=0``) leaves the published head out.
        path_or_state_dict: The published file, its contents, or a bare state dict.
        ema: Take the file's ``model_ema`` rather than its ``model``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no checkpoint, has no ``model_ema``, or does not fit; the message lists the names and shapes.
    """
    model_to_load = _unwrap(model)
    if isinstance(model_to_load, FeatureGetterNet):
        model_to_load = model_to_load.model
    source, published = _published_weights(path_or_state_dict, "model_ema" if ema else "model")
    own = model_to_load.state_dict()
    left_out = _left_out(model_to_load)
    weights = {}
    for name, value in published.items():
        ours = from_official(name.removeprefix("module."))
        if ours.startswith(left_out):
            continue
        # The published horizontal and vertical products are 1x1 convolutions.
        is_product = value.shape[2:] == (1, 1) and ours in own and own[ours].ndim == 2
        weights[ours] = rearrange(value, "o i 1 1 -> o i") if is_product else value
    load_strict(model_to_load, weights, source)
    return model


def _published_weights(path_or_state_dict: PathLike | Mapping, key: str) -> tuple[str, Mapping[str, Tensor]]:
    """What to call the source in messages, and the state dict it holds under ``key`` or is."""
    if isinstance(path_or_state_dict, Mapping):
        source, content = "the state dict", path_or_state_dict
    else:
        source = os.fspath(path_or_state_dict)
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):  # the published files hold their arguments too
                content = torch.load(source, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # bytes that are no checkpoint can raise anything
            raise ValueError(f"{source} is no checkpoint of the published code (atmnet.load reads ours): {error}") from error
        if not isinstance(content, Mapping):
            raise ValueError(f"{source} holds a {type(content).__name__}, not a checkpoint")
    weights = content.get(key)
    if weights is None and key == "model":
        weights = content
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{source} has no weights under {key!r}; it has {', '.join(map(str, list(content)[:8]))}")
    return source, weights


def _left_out(model: ATMNet) -> tuple[str, ...]:
    """Prefixes of the published parameters that this model was made without: its head, its final norm, pruned stages."""
    absent = []
    if not list(model.get_classifier().parameters()):
        absent.append("head.")
    if isinstance(model.norm, nn.Identity):
        absent.append("norm.")
    absent += [f"stages.{i}." for i in range(len(model.stages), 4)]
    return tuple(absent)


def save(model: nn.Module, path: PathLike, /, **metadata: object) -> None:
    """Write the model's weights as safetensors, atomically. ``metadata`` travels with them, as JSON what is not text."""
    weights = {name: value.contiguous() for name, value in _unwrap(model).state_dict().items()}
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    write_atomically(Path(path), lambda file: file.write(to_safetensors(weights, text)))


def load(model: nn.Module, path: PathLike) -> nn.Module:
    """Load weights that ``save`` wrote into a model of the same architecture, and return the model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no safetensors file, or does not fit; the message lists the names and shapes.
    """
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file (load_official reads published checkpoints): {error}") from error
    load_strict(_unwrap(model), weights, str(path))
    return model
