"""The flags of train/coco.py. Their defaults are the paper's recipe; where it is silent (rate, weight decay), what Swin made usual."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atmnet.dense.detection import DETECTORS
from atmnet.dense.necks import NECKS
from common.dense import add_model_flags, check_model_flags, fill_in
from common.errors import UsageError
from common.flags import HelpFormatter, check_numbers
from common.runtime import add_runtime_flags
from timm.scheduler import MultiStepLRScheduler
from torch.optim import Optimizer

# Stochastic depth by variant.
DROP_PATH = {"atmnet_xt": 0.1, "atmnet_t": 0.1, "atmnet_s": 0.3, "atmnet_b": 0.5, "atmnet_l": 0.6}


@dataclass(frozen=True)
class Schedule:
    epochs: int
    decay_epochs: tuple[int, ...]  # after so many the learning rate falls to a tenth
    min_size: tuple[int, ...]


SCHEDULES = {
    "1x": Schedule(epochs=12, decay_epochs=(8, 11), min_size=(800,)),
    "3x": Schedule(epochs=36, decay_epochs=(27, 33), min_size=tuple(range(480, 801, 32))),
}
LR, GLOBAL_BATCH = 1e-4, 16

# What an evaluation takes from the checkpoint unless it is given.
FROM_CHECKPOINT = ("model", "model_kwargs", "detector", "neck", "min_size", "max_size")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coco.py", description="Train or evaluate an object detector on COCO, or on data in its layout.", formatter_class=HelpFormatter
    )
    add = parser.add_argument_group("task").add_argument
    add_model_flags(add)
    add("--detector", default="mask-rcnn", choices=DETECTORS)
    add("--neck", default="fpn", choices=tuple(NECKS))
    add("--eval", metavar="CKPT", help="evaluate this checkpoint and stop: an output folder, a .safetensors, a last.pt")
    add("--pictures", type=int, default=8, metavar="N", help="draw the detections on the first N validation images after an evaluation")

    add = parser.add_argument_group("data").add_argument
    add("--data-dir", metavar="DIR", help="DIR/SPLIT/*.jpg and DIR/annotations/instances_SPLIT.json")
    add("--train-split", default="train2017", metavar="SPLIT")
    add("--val-split", default="val2017", metavar="SPLIT")
    add("--keep-empty", action="store_true", help="train on images without objects too")
    add("--max-broken", type=int, default=50, metavar="N", help="unreadable images to skip before giving up")
    add("--batch-size", "-b", type=int, default=2, metavar="N", help="per process and micro-batch")
    add("--val-batch-size", type=int, default=1, metavar="N", help="larger ones are padded, which changes results a little")
    add("--min-size", type=int, nargs="+", metavar="N", help="of the shorter side, drawn from these in training (default: the schedule's)")
    add("--max-size", type=int, default=1333, metavar="N", help="of the longer side")

    add = parser.add_argument_group("optimisation").add_argument
    add("--schedule", default="1x", choices=tuple(SCHEDULES), help="1x: 12 epochs, 800 pixels; 3x: 36 epochs, 480 to 800 pixels")
    add("--epochs", type=int, help="default: the schedule's; the rate falls after the same shares of them")
    add("--lr", type=float, default=LR, help=f"of AdamW, whatever the batch; the default is for a global batch of {GLOBAL_BATCH}")
    add("--weight-decay", type=float, default=0.05, help="not of norms and biases")
    add("--warmup-updates", type=int, default=500, metavar="N", help="the rate rises linearly over so many")
    add("--clip-grad", type=float, metavar="NORM", help="clip the gradient norm (default: never)")
    add("--grad-accum-steps", type=int, default=1, metavar="N", help="micro-batches per update")
    add_runtime_flags(parser)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    if parser.parse_known_args(argv)[0].eval:
        parser.set_defaults(**dict.fromkeys(FROM_CHECKPOINT))
    args = parser.parse_args(argv)
    if not args.data_dir:
        raise UsageError(
            "give the images: --data-dir DIR with DIR/train2017/*.jpg, DIR/val2017/*.jpg and "
            "DIR/annotations/instances_{train2017,val2017}.json, as COCO is usually unpacked"
        )
    if not args.eval:
        schedule = SCHEDULES[args.schedule]
        args.epochs = args.epochs if args.epochs is not None else schedule.epochs
        args.min_size = args.min_size or list(schedule.min_size)
        complete(args)
    return args


def from_checkpoint(args: argparse.Namespace, meta: Mapping[str, Any], source: str) -> None:
    """Fills in what `--eval` was not given."""
    if "detector" not in meta:
        raise UsageError(f"{source} is not a detector of train/coco.py: it does not say which")
    fill_in(args, meta, FROM_CHECKPOINT)
    complete(args)


def complete(args: argparse.Namespace) -> None:
    """What is wrong with the flags alone, and what follows from them."""
    check_model_flags(args)
    args.output = args.output or f"output/{args.model}-{args.detector}-{args.neck}"
    at_least = dict.fromkeys(("batch_size", "val_batch_size", "grad_accum_steps", "epochs", "max_size"), 1.0)
    at_least |= dict.fromkeys(("lr", "weight_decay", "warmup_updates", "max_broken", "pictures"), 0.0)
    check_numbers(args, at_least, ("drop_path",))
    args.min_size = sorted(args.min_size)
    if min(args.min_size) < 1 or max(args.min_size) > args.max_size:
        raise UsageError(f"--min-size {' '.join(map(str, args.min_size))}: it must lie between 1 and --max-size {args.max_size}")


def make_scheduler(args: argparse.Namespace, optimizer: Optimizer, updates_per_epoch: int) -> MultiStepLRScheduler:
    """Per update. With other `--epochs` the rate falls after the same shares of them as in the schedule."""
    schedule, updates = SCHEDULES[args.schedule], args.epochs * updates_per_epoch
    if args.warmup_updates >= updates:
        raise UsageError(
            f"--warmup-updates {args.warmup_updates} leaves nothing of {args.epochs} epochs of {updates_per_epoch} updates: give fewer"
        )
    return MultiStepLRScheduler(
        optimizer,
        decay_t=[
            round(updates * epoch / schedule.epochs) + 1 for epoch in schedule.decay_epochs
        ],  # timm decays one step earlier than it says
        decay_rate=0.1,
        warmup_t=args.warmup_updates,
        warmup_lr_init=1e-3 * args.lr,
        warmup_prefix=False,
        t_in_epochs=False,
    )


# What does not change the course of a run; the batch is known by its global size.
INCIDENTAL = {
    *("output", "resume", "workers", "checkpoint_steps", "log_interval", "report_to", "eval", "data_dir", "max_broken", "init_from"),
    *("backbone_weights", "batch_size", "val_batch_size", "grad_accum_steps", "compile", "tune", "seed", "pictures"),
    *("model", "detector", "neck", "keep_empty", "grad_checkpointing"),
}
