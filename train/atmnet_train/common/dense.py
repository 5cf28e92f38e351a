"""Parts that segmentation and detection share: a timm backbone, where its weights come from, and its optimizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from atmnet import Backbone, canonical_name
from atmnet.variants import MODEL_NAMES
from timm.optim import create_optimizer_v2
from timm.optim import param_groups_weight_decay as split_by_weight_decay
from torch import nn

from .errors import UsageError
from .models import check_model_name, model_kwargs, try_out
from .runtime import EvaluationSettings, RunSettings
from .settings import BELOW_1, LARGEST_RATE, flag, setting
from .weights import Weights, load_backbone, load_weights, read_weights


@dataclass(frozen=True)
class BackboneSettings:
    """Model and the weights that it starts from."""

    model: str = setting(
        "atmnet_t",
        f"the backbone: {MODEL_NAMES} with maps at strides 4 to 32",
        read=canonical_name,
        incidental=True,
        told="atmnet-t; with --eval, the checkpoint's",
    )
    model_kwargs: tuple[str, ...] = setting((), "passed on to timm.create_model", metavar="KEY=VALUE")
    backbone_weights: str | None = setting(
        None,
        "start the backbone from a classifier: an output folder of train/imagenet.py, a .safetensors, a last.pt, a published .pth",
        metavar="CKPT",
        incidental=True,
        told="new weights",
    )
    pretrained: bool = setting(False, "start the backbone from timm's own weights, which it downloads")
    init_from: str | None = setting(None, "start the whole model from these weights", metavar="CKPT", incidental=True, told="new weights")
    drop_path: float | None = setting(
        None, "stochastic depth", share=True, at_most=BELOW_1, told="the paper's for the variant; timm's for other models"
    )
    grad_checkpointing: bool = setting(False, "compute the backbone's activations again in the backward pass: less memory", incidental=True)


@dataclass(frozen=True)
class AdamWSettings:
    """Optimizer."""

    lr: float = setting(1e-4, "of AdamW, whatever the batch", at_least=0, at_most=LARGEST_RATE)
    weight_decay: float = setting(0.05, "not of norms and biases", at_least=0, at_most=LARGEST_RATE)
    clip_grad: float | None = setting(None, "clip the gradient norm", metavar="NORM", at_least=0, told="never")


def check_model(settings: BackboneSettings, evaluation: EvaluationSettings, run: RunSettings) -> None:
    check_model_name(settings.model)
    given = [name for name in ("backbone_weights", "pretrained", "init_from") if getattr(settings, name)]
    if len(given) > 1:
        raise UsageError(f"weights can come from one place, not from {' and '.join(map(flag, given))}")
    if evaluation.eval and (run.resume or given):
        raise UsageError("--eval CKPT names the weights itself: leave --resume, --init-from, --backbone-weights and --pretrained out")


def trained_values(weights: Weights, names: Sequence[str]) -> dict[str, Any]:
    """Settings that an evaluation takes from its checkpoint."""
    trained = {**weights.meta.get("recipe", {}), **weights.meta}
    if lost := [name for name in names if name not in trained]:
        raise UsageError(f"{weights.source} does not say its {', '.join(lost)}: it is damaged, or of another program")
    return {name: tuple(trained[name]) if isinstance(trained[name], list) else trained[name] for name in names}


def build_model(settings: BackboneSettings, create: Callable[..., Any], side: int) -> Any:
    """Builds what `create` makes of the keywords for timm, for images of such sides."""
    kwargs = model_kwargs(settings.model_kwargs)
    if settings.drop_path is not None:
        kwargs["drop_path_rate"] = settings.drop_path
    if settings.pretrained:
        kwargs["pretrained"] = True
    try:
        model = create(**kwargs)
    except Exception as error:  # of any model
        raise UsageError(f"--model {settings.model} does not take what was given ({kwargs}): {error}") from error
    try_out(backbone(model), (1, 3, side, side), settings.model, training=False)  # a mere 1 x 1 has no statistics in training
    if settings.grad_checkpointing:
        net = network(model)
        if not hasattr(net, "set_grad_checkpointing"):
            raise UsageError(f"--grad-checkpointing: timm's {settings.model} cannot do it as a backbone")
        net.set_grad_checkpointing()
    return model


def network(model: nn.Module) -> Any:
    """The network of timm inside a model."""
    return backbone(model).net


def backbone(model: nn.Module) -> Backbone:
    return next(module for module in model.modules() if isinstance(module, Backbone))


def start_weights(settings: BackboneSettings, accelerator: Accelerator, model: nn.Module) -> None:
    """Starts the model from `--init-from` or `--backbone-weights`."""
    if settings.init_from:
        weights = read_weights(settings.init_from)
        if weights.published and "head" not in weights.meta:
            raise UsageError(f"{weights.source} holds a classifier, not a whole model: give it as --backbone-weights")
        load_weights(model, weights)
    elif settings.backbone_weights:
        weights = read_weights(settings.backbone_weights)
        if not weights.published and ("head" in weights.meta or "detector" in weights.meta):
            raise UsageError(f"{weights.source} holds a whole model, not a classifier: give it as --init-from")
        held = weights.meta.get("model", settings.model)
        if held != settings.model:
            raise UsageError(f"{weights.source} holds {held}, not --model {settings.model}")
        load_backbone(network(model), weights)
    else:
        return
    accelerator.print(f"starting from {weights.source}")


def make_optimizer(settings: AdamWSettings, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, without weight decay on biases, norms, and what a network within the model exempts (ATMNet: its PEGs)."""
    exempt = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()  # type: ignore[operator]
    }
    return create_optimizer_v2(
        model,
        "adamw",
        lr=settings.lr,
        param_group_fn=lambda model: split_by_weight_decay(model, settings.weight_decay, no_weight_decay_list=exempt),
    )
