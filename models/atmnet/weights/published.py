"""The authors' published files: their names for our parameters, and loading them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

from einops import rearrange
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ..model import ATMNet
from .fit import load_strict, unwrap
from .reader import PathLike, read_torch, weights_in

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


def load_official(model: nn.Module, path_or_state_dict: PathLike | Mapping, ema: bool = False) -> nn.Module:
    """Load a checkpoint of the published implementation into one of our models, and return the model. Prefixes of data parallelism and of
    compiled models are taken off; of a network of mmseg the backbone is taken.

    Args:
        model: An ATMNet, or its ``features_only`` form, which takes the backbone and leaves its own per-stage norms as they are. A model
            without a classifier (``num_classes=0``) leaves the published head out.
        path_or_state_dict: The published file, its contents, a bare state dict, or either as timm and mmseg keep it.
        ema: Take the file's ``model_ema`` (timm: ``state_dict_ema``) rather than its ``model`` (``state_dict``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no checkpoint, has no ``model_ema``, or does not fit; the message lists the names and shapes.
    """
    if isinstance(path_or_state_dict, Mapping):
        source, content = "the state dict", path_or_state_dict
    else:
        source, content = os.fspath(path_or_state_dict), read_torch(path_or_state_dict)
    return load_published(model, weights_in(content, source, ema), source)


def load_published(model: nn.Module, published: Mapping[str, Tensor], source: str) -> nn.Module:
    """Load weights by their published names, as ``load_official`` does."""
    model_to_load = unwrap(model)
    if isinstance(model_to_load, FeatureGetterNet):
        model_to_load = model_to_load.model
    own = model_to_load.state_dict()
    left_out = _left_out(model_to_load)
    weights = {}
    for name, value in published.items():
        ours = from_official(name)
        if ours.startswith(left_out):
            continue
        # The published horizontal and vertical products are 1x1 convolutions.
        is_product = value.shape[2:] == (1, 1) and ours in own and own[ours].ndim == 2
        weights[ours] = rearrange(value, "o i 1 1 -> o i") if is_product else value
    load_strict(model_to_load, weights, source)
    return model


def _left_out(model: ATMNet) -> tuple[str, ...]:
    """Prefixes of the published parameters that this model was made without: its head, its final norm, pruned stages."""
    absent = []
    if not list(model.get_classifier().parameters()):
        absent.append("head.")
    if isinstance(model.norm, nn.Identity):
        absent.append("norm.")
    absent += [f"stages.{i}." for i in range(len(model.stages), 4)]
    return tuple(absent)
