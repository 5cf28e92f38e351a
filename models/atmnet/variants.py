"""The five published variants (paper, table 10), registered with timm as ``atmnet_{xt,t,s,b,l}``, and those of videos as
``atmnet_{xt,t,s,b,l}_video``."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from einops import rearrange
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, list_models, register_model
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from .model import ATMNet
from .stages import LAYER_NORM_EPS

__all__: list[str] = ["ATMNetFeatures", "canonical_name"]

VARIANTS: dict[str, dict[str, Any]] = dict(
    atmnet_xt=dict(depths=(2, 2, 4, 2)),
    atmnet_t=dict(depths=(2, 3, 10, 3)),
    atmnet_s=dict(depths=(3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4), period=6),
    atmnet_b=dict(depths=(3, 8, 27, 3), mlp_ratios=(8, 8, 4, 4), period=6),
    atmnet_l=dict(depths=(3, 4, 24, 3), dims=(96, 192, 384, 768), period=6),
)

VIDEO = {f"{name}_video": arguments | dict(time="all") for name, arguments in VARIANTS.items()}

# In help texts and messages.
VARIANT_NAMES = "atmnet" + ", ".join(name.removeprefix("atmnet").replace("_", "-") for name in VARIANTS)
MODEL_NAMES = f"{VARIANT_NAMES}, or any timm model"

default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": dict(
            url="",
            num_classes=1000,
            input_size=(3, 224, 224),
            pool_size=(7, 7),
            crop_pct=0.875,
            interpolation="bicubic",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            first_conv="stem",
            classifier="head.fc",
            license="mit",
            paper_name="Active Token Mixer",
            paper_ids="arXiv:2203.06108",
            origin_url="https://github.com/microsoft/ActiveMLP",
        )
        for name in (*VARIANTS, *VIDEO)
    }
)


def canonical_name(model: str) -> str:
    """``atmnet-b`` and ``ATMNet-B`` name the model ``atmnet_b``; other names stay as they are."""
    name = model.lower().replace("-", "_")
    return name if name.startswith("atmnet_") else model


def variant_of(depths: Sequence[int]) -> str | None:
    """Name of the variant with so many blocks in its stages, if any."""
    return next((name for name, arguments in VARIANTS.items() if arguments["depths"] == tuple(depths)), None)


def model_arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """The arguments of a model from ``KEY=VALUE`` as timm's own programs read it: a Python value, else text.

    Raises:
        ValueError: one is not written so.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair}: write it as KEY=VALUE")
        if key in arguments:
            raise ValueError(f"{key} is given twice")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return arguments


def check_known(name: str) -> None:
    """Refuse the name of a model that timm does not know.

    Raises:
        ValueError: with names that are written alike.
    """
    if not is_model(name):
        near = difflib.get_close_matches(name, list_models(), n=5)
        raise ValueError(f"{name}: timm knows no such model" + (f"; it knows {', '.join(near)}" if near else ""))


class ATMNetFeatures(FeatureGetterNet):
    """Dense features: each stage's output through a LayerNorm of its own, for ``timm.create_model(..., features_only=True)``."""

    model: ATMNet

    def __init__(self, model: ATMNet, out_indices: int | list[int], **kwargs: Any) -> None:
        # From the finest, as forward_intermediates returns them, in whichever order they were asked for.
        take = sorted(set(feature_take_indices(len(model.stages), out_indices)[0]))
        super().__init__(model, tuple(take), **kwargs)
        self.norms = nn.ModuleDict({str(i): nn.LayerNorm(self.feature_info.channels(i), LAYER_NORM_EPS) for i in take})
        self.norms.to(next(model.parameters()))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.model.forward_intermediates(x, list(self.feature_info.out_indices), output_fmt="NHWC", intermediates_only=True)
        features = [norm(y) for norm, y in zip(self.norms.values(), features, strict=True)]
        return [rearrange(y, "b ... c -> b c ...") for y in features] if self.output_fmt == "NCHW" else features

    def no_weight_decay(self) -> set[str]:
        return {f"model.{name}" for name in self.model.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> ATMNet | ATMNetFeatures:
    features = dict(feature_cls=ATMNetFeatures, out_indices=(0, 1, 2, 3), output_fmt="NCHW")
    return build_model_with_cfg(ATMNet, variant, pretrained, feature_cfg=features, **(VARIANTS | VIDEO)[variant] | kwargs)


@register_model
def atmnet_xt(pretrained: bool = False, **kwargs: Any) -> ATMNet | ATMNetFeatures:
    return _create("atmnet_xt", pretrained, **kwargs)


@register_model
def atmnet_t(pretrained: bool = False, **kwargs: Any) -> ATMNet | ATMNetFeatures:
    return _create("atmnet_t", pretrained, **kwargs)


@register_model
def atmnet_s(pretrained: bool = False, **kwargs: Any) -> ATMNet | ATMNetFeatures:
    return _create("atmnet_s", pretrained, **kwargs)


@register_model
def atmnet_b(pretrained: bool = False, **kwargs: Any) -> ATMNet | ATMNetFeatures:
    return _create("atmnet_b", pretrained, **kwargs)


@register_model
def atmnet_l(pretrained: bool = False, **kwargs: Any) -> ATMNet | ATMNetFeatures:
    return _create("atmnet_l", pretrained, **kwargs)


@register_model
def atmnet_xt_video(pretrained: bool = False, **kwargs: Any) -> ATMNet | ATMNetFeatures:
    return _create("atmnet_xt_video", pretrained, **kwargs)


@register_model
def atmnet_t_video(pretrained: bool = False, **kwargs: Any) -> ATMNet | ATMNetFeatures:
    return _create("atmnet_t_video", pretrained, **kwargs)


@register_model
def atmnet_s_video(pretrained: bool = False, **kwargs: Any) -> ATMNet | ATMNetFeatures:
    return _create("atmnet_s_video", pretrained, **kwargs)


@register_model
def atmnet_b_video(pretrained: bool = False, **kwargs: Any) -> ATMNet | ATMNetFeatures:
    return _create("atmnet_b_video", pretrained, **kwargs)


@register_model
def atmnet_l_video(pretrained: bool = False, **kwargs: Any) -> ATMNet | ATMNetFeatures:
    return _create("atmnet_l_video", pretrained, **kwargs)
