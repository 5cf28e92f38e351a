"""Weights on disk: the published checkpoints, and ours in safetensors."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

PathLike = str | os.PathLike[str]

# Published name -> ours, first match wins. `blocks.i.j.downsample` stands in the last block of stage i and feeds stage i + 1.
RENAMES = [
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


def _load_strict(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
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
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"{source} does not fit {type(model).__name__}:\n  " + "\n  ".join(problems[:20]) + more)
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
        KeyError: the file has no ``model_ema``.
        ValueError: it does not fit; the message lists the names and shapes.
    """
    if isinstance(path_or_state_dict, Mapping):
        source, content = "the state dict", path_or_state_dict
    else:
        source = str(path_or_state_dict)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the published files hold their arguments too
            content = torch.load(path_or_state_dict, map_location="cpu", weights_only=True)
    key = "model_ema" if ema else "model"
    if key in content:
        content = content[key]
    elif ema:
        raise KeyError(f"{source} has no 'model_ema'; it has {sorted(content)[:8]}: load it with ema=False")
    if isinstance(model, FeatureGetterNet):
        model_to_load: nn.Module = model.model
    else:
        model_to_load = model
    absent = _left_out(model_to_load)
    own = model_to_load.state_dict()
    weights = {}
    for name, value in content.items():
        ours = from_official(name.removeprefix("module."))
        if ours.startswith(absent):
            continue
        # The published horizontal and vertical products are 1x1 convolutions.
        is_product = value.ndim == 4 and ours in own and own[ours].ndim == 2
        weights[ours] = rearrange(value, "o i 1 1 -> o i") if is_product else value
    _load_strict(model_to_load, weights, source)
    return model


def _left_out(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the published parameters that this model was made without: its head, its final norm, pruned stages."""
    absent = []
    if not list(model.get_classifier().parameters()):
        absent.append("head.")
    if isinstance(model.norm, nn.Identity):
        absent.append("norm.")
    absent += [f"stages.{i}." for i in range(len(model.stages), 4)]
    return tuple(absent)


def save(model: nn.Module, path: PathLike, **metadata: str) -> None:
    """Write the model's weights as safetensors, atomically. ``metadata`` is text that travels with them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial, {k: str(v) for k, v in metadata.items()})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(model: nn.Module, path: PathLike) -> nn.Module:
    """Load weights that ``save`` wrote into a model of the same architecture, and return the model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not fit; the message lists the names and shapes.
    """
    with safe_open(path, "pt") as file:
        _load_strict(model, {name: file.get_tensor(name) for name in file.keys()}, str(path))  # noqa: SIM118
    return model
