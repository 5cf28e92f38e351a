"""Loading the authors' published files."""

from __future__ import annotations

import os
from collections.abc import Mapping

from einops import rearrange
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ..model import ATMNet
from ..variants import ATMNetFeatures
from .fit import load_strict, unwrap
from .naming import OF_SEGMENTER, from_official
from .reader import PathLike, backbone_of, check_finite, read_torch, weights_in


def load_official(model: nn.Module, path_or_state_dict: PathLike | Mapping, ema: bool = False) -> nn.Module:
    """Load a checkpoint of the published implementation into one of our models, and return the model. Prefixes of data parallelism and of
    compiled models are taken off; of a network of mmseg the backbone is taken, unless the model is a segmenter too.

    Args:
        model: An ATMNet, or its ``features_only`` form, which takes the backbone: of a classifier without norms of maps, and leaves its own
            as they are; of a segmenter or detector with these. A model without a classifier (``num_classes=0``) leaves the published head
            out. Or a segmenter of ``create_segmenter``, which takes a segmentation checkpoint whole.
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
    net = unwrap(model)
    if not any(name.startswith(OF_SEGMENTER) for name in net.state_dict()):
        published = backbone_of(published)
    rename, left_out = from_official, tuple[str, ...]()
    if isinstance(net, ATMNetFeatures) and "norm_0.weight" in published:  # of dense prediction
        rename, left_out = _from_backbone, _left_out_of_features(net)
    elif isinstance(net, FeatureGetterNet):
        net = net.model
    if isinstance(net, ATMNet):
        left_out = _left_out(net)
    own, weights = net.state_dict(), {}
    for name, value in published.items():
        ours = rename(name)
        if ours.startswith(left_out):
            continue
        # The published horizontal and vertical products are 1x1 convolutions.
        is_product = value.shape[2:] == (1, 1) and ours in own and own[ours].ndim == 2
        weights[ours] = rearrange(value, "o i 1 1 -> o i") if is_product else value
    load_strict(net, weights, source)
    return model


def _from_backbone(name: str) -> str:
    return from_official(f"{OF_SEGMENTER}{name}").removeprefix("backbone.net.")


def _left_out_of_features(net: ATMNetFeatures) -> tuple[str, ...]:
    norms = [f"norms.{i}." for i in range(4) if str(i) not in net.norms]
    return (*(f"model.{prefix}" for prefix in _left_out(net.model)), *norms)


def _left_out(model: ATMNet) -> tuple[str, ...]:
    """Prefixes of the published parameters that this model was made without: its head, its final norm, pruned stages."""
    absent = []
    if not list(model.get_classifier().parameters()):
        absent.append("head.")
    if isinstance(model.norm, nn.Identity):
        absent.append("norm.")
    absent += [f"stages.{i}." for i in range(len(model.stages), 4)]
    return tuple(absent)
