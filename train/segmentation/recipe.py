"""The flags of train/ade20k.py. Their defaults are the paper's recipes: PVT's for Semantic FPN, Swin's for UperNet."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from atmnet.dense.necks import NECKS
from atmnet.dense.segmentation import HEADS
from common.dense import add_model_flags, check_model_flags, fill_in
from common.errors import UsageError
from common.flags import HelpFormatter, check_numbers
from common.runtime import add_runtime_flags
from timm.scheduler import PolyLRScheduler
from torch.optim import Optimizer

from .data import LAYOUT, MOST_CLASSES

# Stochastic depth by variant.
DROP_PATH = {"atmnet_xt": 0.1, "atmnet_t": 0.1, "atmnet_s": 0.2, "atmnet_b": 0.2, "atmnet_l": 0.2}


@dataclass(frozen=True)
class Recipe:
    iterations: int
    batch_size: int  # of one of eight processes
    lr: float
    power: float
    warmup_updates: int


RECIPES = {
    "semantic-fpn": Recipe(iterations=40_000, batch_size=4, lr=2e-4, power=0.9, warmup_updates=0),
    "upernet": Recipe(iterations=160_000, batch_size=2, lr=6e-5, power=1.0, warmup_updates=1500),
}
PROCESSES = 8

# What an evaluation takes from the checkpoint unless it is given.
FROM_CHECKPOINT = ("model", "model_kwargs", "head", "neck", "crop_size")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ade20k.py",
        description="Train or evaluate semantic segmentation on ADE20K, or on data in its layout.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument_group("task").add_argument
    add_model_flags(add)
    add("--head", default="semantic-fpn", choices=HEADS)
    add("--neck", choices=tuple(NECKS), help="of Semantic FPN (default: fpn); UperNet has its own pyramid")
    add("--eval", metavar="CKPT", help="evaluate this checkpoint and stop: an output folder, a .safetensors, a last.pt")
    add("--multi-scale", action="store_true", help="--eval: the mean over six scales from 0.5 to 1.75, each also mirrored")
    add("--pictures", type=int, default=8, metavar="N", help="draw the predictions on the first N validation images after an evaluation")

    add = parser.add_argument_group("data").add_argument
    add("--data-dir", metavar="DIR", help=LAYOUT)
    add("--train-split", default="training", metavar="SPLIT")
    add("--val-split", default="validation", metavar="SPLIT")
    add(
        "--classes",
        metavar="FILE",
        help="their names, one a line (default: objectInfo150.txt or classes.txt in --data-dir, if any)",
    )
    add("--num-classes", type=int, help="default: as many as are named, else the largest label in the annotations")
    add("--max-broken", type=int, default=50, metavar="N", help="unreadable images to skip before giving up")
    add("--batch-size", "-b", type=int, metavar="N", help="per process and micro-batch (default: the recipe's on 8 processes, 4 or 2)")
    add("--crop-size", type=int, default=512, metavar="PIXELS", help="of training; the shorter side of images in evaluation")
    add("--no-aug", action="store_true", help="no random scale, mirroring or colours")

    add = parser.add_argument_group("optimisation").add_argument
    add("--iterations", type=int, metavar="N", help="updates (default: 40000 for Semantic FPN, 160000 for UperNet)")
    add("--eval-interval", type=int, metavar="N", help="updates between evaluations (default: a tenth of --iterations)")
    add("--lr", type=float, help="of AdamW, whatever the batch (default: 2e-4 for Semantic FPN, 6e-5 for UperNet)")
    add("--weight-decay", type=float, default=0.01, help="not of norms and biases")
    add(
        "--warmup-updates",
        type=int,
        metavar="N",
        help="the rate rises linearly (default: 0 for Semantic FPN, 1500 for UperNet)",
    )
    add("--clip-grad", type=float, metavar="NORM", help="clip the gradient norm (default: never)")
    add("--grad-accum-steps", type=int, default=1, metavar="N", help="micro-batches per update")
    add_runtime_flags(parser)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    purpose = parser.parse_known_args(argv)[0]
    parser.set_defaults(**asdict(RECIPES[purpose.head]))  # flags given still win
    if purpose.eval:
        parser.set_defaults(**dict.fromkeys(FROM_CHECKPOINT))
    args = parser.parse_args(argv)
    if not args.data_dir:
        raise UsageError(f"give the images: --data-dir DIR with {LAYOUT}")
    if not args.eval:
        complete(args)
    return args


def from_checkpoint(args: argparse.Namespace, meta: Mapping[str, Any], source: str) -> None:
    """Fills in what `--eval` was not given."""
    if "head" not in meta:
        raise UsageError(f"{source} is not a model of train/ade20k.py: it does not say which head it has")
    fill_in(args, meta, FROM_CHECKPOINT)
    complete(args)


def complete(args: argparse.Namespace) -> None:
    """What is wrong with the flags alone, and what follows from them."""
    check_model_flags(args)
    if args.head == "upernet" and args.neck:
        raise UsageError(f"--neck {args.neck}: UperNet has its own pyramid and takes no neck: leave --neck or --head upernet out")
    if args.head == "semantic-fpn":
        args.neck = args.neck or "fpn"
    args.output = args.output or "output/" + "-".join(filter(None, (args.model, args.head, args.neck)))
    at_least = dict.fromkeys(("batch_size", "grad_accum_steps", "iterations", "eval_interval", "num_classes"), 1.0) | {"crop_size": 2.0}
    at_least |= dict.fromkeys(("lr", "weight_decay", "warmup_updates", "max_broken", "pictures"), 0.0)
    check_numbers(args, at_least, ("drop_path",))
    if args.num_classes is not None and args.num_classes > MOST_CLASSES:
        raise UsageError(f"--num-classes {args.num_classes}: annotations of 8 bits tell at most {MOST_CLASSES} apart")
    if args.eval:
        return
    if args.multi_scale:
        raise UsageError("--multi-scale is for --eval CKPT: it takes twelve times as long, too long for evaluations in training")
    args.eval_interval = args.eval_interval or max(1, args.iterations // 10)
    if args.iterations % args.eval_interval:
        raise UsageError(f"--iterations {args.iterations} is no multiple of --eval-interval {args.eval_interval}: give another of the two")
    if args.warmup_updates >= args.iterations:
        raise UsageError(f"--warmup-updates {args.warmup_updates} leaves nothing of --iterations {args.iterations}: give fewer")


def make_scheduler(args: argparse.Namespace, optimizer: Optimizer) -> PolyLRScheduler:
    """Per update, to 0 at the end."""
    return PolyLRScheduler(
        optimizer,
        t_initial=args.iterations,
        power=args.power,
        warmup_t=args.warmup_updates,
        warmup_lr_init=1e-6 * args.lr,
        t_in_epochs=False,
    )


# What does not change the course of a run; the batch is known by its global size.
INCIDENTAL = {
    *("output", "resume", "workers", "checkpoint_steps", "log_interval", "report_to", "eval", "data_dir", "max_broken", "init_from"),
    *("backbone_weights", "batch_size", "grad_accum_steps", "compile", "tune", "seed", "pictures", "multi_scale"),
    *("model", "head", "neck", "classes", "num_classes", "grad_checkpointing"),
}
