"""Loading the authors' published files."""

from __future__ import annotations

import os
from collections.abc import Mapping

from einops import rearrange
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ..model import ATMNet
from .fit import load_strict, unwrap
from .naming import OF_SEGMENTER, from_official
from .reader import PathLike, backbone_of, check_finite, read_torch, weights_in


def load_official(model: nn.Module, path_or_state_dict: PathLike | Mapping, ema: bool = False) -> nn.Module:
    """Load a checkpoint of the published implementation into one of our models, and return the model. Prefixes of data parallelism and of
    compiled models are taken off; of a network of mmseg the backbone is taken, unless the model is a segmenter too.

    Args:
        model: An ATMNet, or its ``features_only`` form, which takes the backbone and leaves its own per-stage norms as they are. A model
            without a classifier (``num_classes=0``) leaves the published head out. Or a segmenter of ``create_segmenter``, which takes a
            segmentation checkpoint whole, heads and per-stage norms.
        path_or_state_dict: The published file, its contents, a bare state dict, or either as timm and mmseg keep it.
        ema: Take the file's ``model_ema`` (timm: ``state_dict_ema``) rather than its ``model`` (``state_dict``). The published accuracy is
            that of the averaged weights, which ``open_classifier`` and the evaluations take unasked; this function does not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no checkpoint, has no ``model_ema``, holds weights that are not finite, or does not fit; the message lists the
            names and shapes.
    """
    if isinstance(path_or_state_dict, Mapping):
        source, content = "the state dict", path_or_state_dict
    else:
        source, content = os.fspath(path_or_state_dict), read_torch(path_or_state_dict)
    weights = weights_in(content, source, ema)
    check_finite(source, weights)
    return load_published(model, weights, source)


def load_published(model: nn.Module, published: Mapping[str, Tensor], source: str) -> nn.Module:
    """Load weights by their published names, as ``load_official`` does."""
    model_to_load = unwrap(model)
    if isinstance(model_to_load, FeatureGetterNet):
        model_to_load = model_to_load.model
    own = model_to_load.state_dict()
    if not any(name.startswith(OF_SEGMENTER) for name in own):
        published = backbone_of(published)
    left_out = _left_out(model_to_load) if isinstance(model_to_load, ATMNet) else ()
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
