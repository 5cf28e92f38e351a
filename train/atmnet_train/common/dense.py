"""What the programs for segmentation and detection have in common: a timm backbone, where its weights come from, and its optimizer."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from atmnet import Backbone, canonical_name
from timm.optim import create_optimizer_v2
from timm.optim import param_groups_weight_decay as split_by_weight_decay
from torch import nn

from .errors import UsageError
from .flags import check_model_name, model_kwargs
from .weights import load_backbone, load_weights, read_weights


def add_model_flags(add: Callable[..., Any]) -> None:
    add("--model", default="atmnet-t", help="the backbone: atmnet-xt, -t, -s, -b, -l, or any timm model with maps at strides 4 to 32")
    add("--model-kwargs", nargs="*", default=[], metavar="KEY=VALUE", help="passed on to timm.create_model")
    add(
        "--backbone-weights",
        metavar="CKPT",
        help="start the backbone from a classifier: an output folder of train/imagenet.py, a .safetensors, a last.pt, a published .pth",
    )
    add("--pretrained", action="store_true", help="start the backbone from timm's own weights, which it downloads")
    add("--init-from", metavar="CKPT", help="start the whole model from these weights")
    add("--drop-path", type=float, help="stochastic depth (default: the paper's for the variant)")
    add("--grad-checkpointing", action="store_true", help="compute the backbone's activations again in the backward pass: less memory")


def check_model_flags(args: argparse.Namespace) -> None:
    args.model = canonical_name(args.model)
    check_model_name(args.model)
    given = [flag for flag in ("backbone_weights", "pretrained", "init_from") if getattr(args, flag)]
    if len(given) > 1:
        raise UsageError(f"weights can come from one place, not from {' and '.join('--' + name.replace('_', '-') for name in given)}")
    if args.eval and (args.resume or given):
        raise UsageError("--eval CKPT names the weights itself: leave --resume, --init-from, --backbone-weights and --pretrained out")


def fill_in(args: argparse.Namespace, meta: Mapping[str, Any], names: Sequence[str]) -> None:
    """From the checkpoint that `--eval` is given, what is not given beside it."""
    trained = {**meta.get("recipe", {}), **meta}
    for name in names:
        if getattr(args, name) is None:
            setattr(args, name, trained[name])


def build_model(args: argparse.Namespace, drop_path: Mapping[str, float], create: Callable[..., Any]) -> Any:
    """What `create` makes of the keywords for timm; `drop_path` by variant."""
    kwargs = model_kwargs(args.model_kwargs)
    rate = args.drop_path if args.drop_path is not None else drop_path.get(args.model)
    if rate is not None:
        kwargs["drop_path_rate"] = rate
    if args.pretrained:
        kwargs["pretrained"] = True
    try:
        model = create(**kwargs)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--model {args.model} does not take what was given ({kwargs}): {error}") from error
    if args.grad_checkpointing:
        net = network(model)
        if not hasattr(net, "set_grad_checkpointing"):
            raise UsageError(f"--grad-checkpointing: timm's {args.model} cannot do it as a backbone")
        net.set_grad_checkpointing()
    return model


def network(model: nn.Module) -> Any:
    """timm's, inside."""
    return next(module for module in model.modules() if isinstance(module, Backbone)).net


def start_weights(args: argparse.Namespace, accelerator: Accelerator, model: nn.Module) -> None:
    """Where `--init-from` or `--backbone-weights` says."""
    if args.init_from:
        weights = read_weights(args.init_from)
        if weights.published:
            raise UsageError(f"{weights.source} holds a classifier, not a whole model: give it as --backbone-weights")
        load_weights(model, weights)
    elif args.backbone_weights:
        weights = read_weights(args.backbone_weights)
        if "head" in weights.meta or "detector" in weights.meta:
            raise UsageError(f"{weights.source} holds a whole model, not a classifier: give it as --init-from")
        held = weights.meta.get("model", args.model)
        if held != args.model:
            raise UsageError(f"{weights.source} holds {held}, not --model {args.model}")
        load_backbone(network(model), weights)
    else:
        return
    accelerator.print(f"starting from {weights.source}")


def make_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
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
        lr=args.lr,
        param_group_fn=lambda model: split_by_weight_decay(model, args.weight_decay, no_weight_decay_list=exempt),
    )
