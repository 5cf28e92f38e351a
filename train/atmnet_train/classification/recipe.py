"""The flags of train/imagenet.py, in timm's spelling. Their defaults are the paper's recipe (its table 9; where it is silent, DeiT's)."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from ..common.errors import UsageError
from ..common.flags import HelpFormatter, check_numbers
from ..common.runtime import add_runtime_flags

# Stochastic depth by variant.
DROP_PATH = {"atmnet_xt": 0.1, "atmnet_t": 0.1, "atmnet_s": 0.2, "atmnet_b": 0.3, "atmnet_l": 0.3}

# Fine-tuning at a higher resolution: 30 epochs at a constant, unscaled 5e-6.
FINETUNE: dict[str, object] = {"img_size": 384, "epochs": 30, "lr": 5e-6, "min_lr": 5e-6, "warmup_epochs": 0, "cooldown_epochs": 0}

# What an evaluation takes from the checkpoint unless it is given, and where neither says.
EVAL: dict[str, object] = {"img_size": 224, "crop_pct": 224 / 256, "interpolation": "bicubic", "model_kwargs": []}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imagenet.py",
        description="Train or evaluate an ATMNet, or any timm model, on ImageNet or a folder of images.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument_group("task").add_argument
    add("--model", help="atmnet-xt, -t, -s, -b, -l, or any timm model (default: atmnet-t; with --eval, the checkpoint's)")
    add("--model-kwargs", nargs="*", default=EVAL["model_kwargs"], metavar="KEY=VALUE", help="passed on to timm.create_model")
    add("--init-from", metavar="CKPT", help="start from these weights; a classifier of another size is replaced")
    add("--finetune", action="store_true", help="preset for --init-from: 384 pixels, 30 epochs at 5e-6")
    add("--eval", metavar="CKPT", help="evaluate this checkpoint and stop: an output folder, a .safetensors, a last.pt, a published .pth")
    add("--ema", action="store_true", help="--eval, --init-from: take the averaged weights of the checkpoint")

    add = parser.add_argument_group("data").add_argument
    add("--data-dir", metavar="DIR", help="DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or where --dataset keeps its files")
    add(
        "--dataset", default="", metavar="NAME", help="a timm dataset: hfds/..., hfids/..., wds/..., tfds/..., torch/... (default: folders)"
    )
    add("--train-split", default="train")
    add("--val-split", default="validation")
    add("--dataset-download", action="store_true", help="let the dataset download itself")
    add("--input-key", help="the image column of --dataset")
    add("--target-key", help="the label column of --dataset")
    add("--num-classes", type=int, help="default: from the data")
    add("--max-broken", type=int, default=50, metavar="N", help="unreadable images to skip before giving up")
    add("--batch-size", "-b", type=int, default=128, metavar="N", help="per process and micro-batch")
    add("--val-batch-size", type=int, metavar="N", help="default: --batch-size")
    add("--img-size", type=int, help="default: 224; with --finetune 384; with --eval, the checkpoint's")
    add("--crop-pct", type=float, default=EVAL["crop_pct"], help="evaluation crop")
    add("--interpolation", default="bicubic", choices=("bicubic", "bilinear", "nearest", "random"))

    add = parser.add_argument_group("augmentation and regularisation").add_argument
    add("--no-aug", action="store_true", help="no random transforms")
    add("--scale", type=float, nargs=2, default=(0.08, 1.0), help="area of the random crop")
    add("--ratio", type=float, nargs=2, default=(3 / 4, 4 / 3), help="aspect ratio of the random crop")
    add("--hflip", type=float, default=0.5)
    add("--aa", default="rand-m9-mstd0.5-inc1", help="auto-augment policy; none switches it off")
    add("--color-jitter", type=float, default=0.4, help="takes effect with --aa none, as in timm")
    add("--aug-repeats", type=int, default=3, help="repeated augmentation; 0 or 1 switches it off")
    add("--reprob", type=float, default=0.25, help="random erasing")
    add("--remode", default="pixel", choices=("pixel", "rand", "const"))
    add("--mixup", type=float, default=0.8)
    add("--cutmix", type=float, default=1.0)
    add("--mixup-prob", type=float, default=1.0)
    add("--mixup-switch-prob", type=float, default=0.5)
    add("--mixup-off-epoch", type=int, default=0, help="stop mixing at this epoch (0: never)")
    add("--smoothing", type=float, default=0.1)
    add("--drop-path", type=float, help="default: the variant's, 0.1 to 0.3")
    add("--model-ema-decay", type=float, default=0.99996, help="0 switches the averaged weights off")
    add("--model-ema-warmup", action="store_true", help="average over the steps there are at first: for runs of few updates")

    add = parser.add_argument_group("optimisation").add_argument
    add("--opt", default="adamw")
    add("--lr", type=float, help="default: --lr-base times global batch over --lr-base-size")
    add("--lr-base", type=float, default=1e-3)
    add("--lr-base-size", type=int, default=1024)
    add("--weight-decay", type=float, default=0.05)
    add("--momentum", type=float, default=0.9, help="of optimizers that have one")
    add("--layer-decay", type=float, help="layer-wise decay of the learning rate")
    add("--clip-grad", type=float, metavar="NORM", help="clip the gradient norm (0: never)")
    add("--grad-accum-steps", type=int, default=1, metavar="N", help="micro-batches per update")
    add("--sched", default="cosine", choices=("cosine", "poly", "tanh", "step"))
    add("--sched-on-updates", action="store_true", help="follow the schedule at every update rather than epoch")
    add("--epochs", type=int, default=300)
    add("--warmup-epochs", type=int, default=5)
    add("--cooldown-epochs", type=int, default=10, help="at --min-lr, after --epochs")
    add("--min-lr", type=float, default=1e-5)
    add("--warmup-lr", type=float, default=1e-6)
    add("--decay-epochs", type=float, default=90, help="of --sched step")
    add("--decay-rate", type=float, default=0.1, help="of --sched step; the power of poly")
    add_runtime_flags(parser)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    purpose = parser.parse_known_args(argv)[0]
    parser.set_defaults(**dict.fromkeys(EVAL) if purpose.eval else {"img_size": EVAL["img_size"]})
    if purpose.finetune:
        parser.set_defaults(**FINETUNE)  # flags given still win
    args = parser.parse_args(argv)
    check(args)
    return args


def as_trained(args: argparse.Namespace, meta: Mapping[str, Any]) -> None:
    """Fills in what `--eval` was not given, from the checkpoint."""
    trained = meta | meta.get("recipe", {})
    for name, default in EVAL.items():
        if getattr(args, name) is None:
            setattr(args, name, trained.get(name, default))


def check(args: argparse.Namespace) -> None:
    """What is wrong with the flags alone."""
    at_least = {
        "batch_size": 1,
        "val_batch_size": 1,
        "img_size": 1,
        "epochs": 1,
        "grad_accum_steps": 1,
        "num_classes": 1,
        "lr_base_size": 1,
    }
    not_negative = ("warmup_epochs", "cooldown_epochs", "max_broken", "aug_repeats", "mixup", "cutmix", "color_jitter")
    at_least |= dict.fromkeys([*not_negative, "weight_decay", "lr"], 0)
    shares = ("reprob", "smoothing", "hflip", "mixup_prob", "mixup_switch_prob", "drop_path", "model_ema_decay", "crop_pct")
    check_numbers(args, at_least, shares)
    if args.finetune and not args.init_from:
        raise UsageError("--finetune starts from trained weights: give --init-from CKPT")
    if args.eval and (args.resume or args.init_from):
        raise UsageError("--eval CKPT names the weights itself: leave --resume and --init-from out")
    if not args.eval and (args.mixup > 0 or args.cutmix > 0) and args.batch_size % 2:
        raise UsageError(f"--batch-size {args.batch_size}: mixup pairs the images of a batch, so it must be even (or --mixup 0 --cutmix 0)")
    if not args.eval and args.warmup_epochs >= args.epochs:
        raise UsageError(f"--warmup-epochs {args.warmup_epochs} leaves nothing of --epochs {args.epochs}: give fewer warm-up epochs")


# What does not change the course of a run; the batch is known by its global size.
INCIDENTAL = {
    *("output", "resume", "workers", "checkpoint_steps", "log_interval", "report_to", "eval", "ema", "data_dir", "max_broken", "init_from"),
    *("batch_size", "val_batch_size", "grad_accum_steps", "dataset_download", "compile", "tune", "seed", "aug_repeats", "model"),
}


def learning_rate(args: argparse.Namespace, global_batch: int) -> float:
    """Scaled linearly with the global batch, which is what one update sees however it is spread."""
    lr = args.lr if args.lr is not None else args.lr_base * global_batch / args.lr_base_size
    if args.sched != "step" and lr < args.min_lr:
        raise UsageError(
            f"the learning rate {lr:.3g} for a global batch of {global_batch} is below "
            f"--min-lr {args.min_lr:.3g}: give --lr, or a smaller --min-lr"
        )
    return lr
