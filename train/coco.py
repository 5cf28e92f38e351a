"""Train an object detector on COCO, or on data in its layout: `accelerate launch train/coco.py --help`."""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from atmnet.dense.detection import create_detector
from common import dense
from common.broken import BrokenImages
from common.checkpoints import read_state
from common.engine import BatchLoss, end_quietly
from common.errors import UsageError, run_program
from common.flags import recipe_of
from common.loading import MapLoader
from common.report import versions, write_json
from common.run import Task, claim_output, compile_core, fit, make_plan
from common.runtime import check_runtime_flags, make_accelerator
from common.seeding import seed_everything
from common.weights import load_weights, read_weights, shorten
from detection.annotations import Split, open_split
from detection.data import TrainImages, collate
from detection.evaluate import Evaluator
from detection.recipe import DROP_PATH, GLOBAL_BATCH, INCIDENTAL, LR, from_checkpoint, make_scheduler, parse
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

CORE = "backbone"  # with the neck; what follows depends on what is found in an image


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    check_runtime_flags(args)
    if args.eval:
        evaluate(args)
    else:
        train(args)


def evaluate(args: argparse.Namespace) -> None:
    """`--eval`: the AP of a checkpoint."""
    weights = read_weights(args.eval)
    from_checkpoint(args, weights.meta, weights.source)
    accelerator = make_accelerator(args)
    val = open_val(args, accelerator)
    if val.classes != weights.meta["classes"]:
        raise UsageError(
            f"{weights.source} was trained on {len(weights.meta['classes'])} classes ({shorten(weights.meta['classes'])}), "
            f"{val.source} has {len(val.classes)} ({shorten(val.classes)})"
        )
    model = build_model(args, len(val.classes))
    load_weights(model, weights)
    # Placed here: under FSDP, Accelerate leaves a model that is not trained where it is.
    model = accelerator.prepare_model(model.to(accelerator.device), evaluation_mode=True)
    if args.compile:
        compile_core(accelerator, model, CORE)
    broken = BrokenImages(args.max_broken, len(val.images))
    began = time.perf_counter()
    result = Evaluator(val, has_masks(args), args, accelerator, broken)({"": model})[""]
    seconds = time.perf_counter() - began
    shown = " · ".join(f"{name.replace('_', ' ', 1)} {value:.2f}" for name, value in result.items() if name != "images")
    accelerator.print(
        f"{title(args)} · {weights.source} · {result['images']:.0f} images · {shown} · {result['images'] / seconds:.1f} images/s · "
        f"{args.output}/eval.json, detections.json, pictures"
    )
    if accelerator.is_main_process:
        report = {name: getattr(args, name) for name in ("model", "detector", "neck", "min_size", "max_size")}
        facts = {"checkpoint": weights.source, "seconds": seconds, "unreadable": broken.found, "versions": versions()}
        write_json(Path(args.output) / "eval.json", report | result | facts)
    end_quietly(accelerator)


def train(args: argparse.Namespace) -> None:
    resume = claim_output(args)
    accelerator = make_accelerator(args, args.grad_accum_steps)
    split, dataset = open_train(args, accelerator)
    val = open_val(args, accelerator)
    if (split.category_ids, split.classes) != (val.category_ids, val.classes):
        raise UsageError(f"the categories of {split.source} ({shorten(split.classes)}) and of {val.source} ({shorten(val.classes)}) differ")

    # The same weights on every process, whatever its number.
    seed_everything(args.seed)
    model = build_model(args, len(split.classes))
    if resume is None:
        dense.start_weights(args, accelerator, model)
    # The few images of a batch give no statistics: a backbone that starts from weights keeps those of its pretraining.
    started = bool(args.pretrained or args.backbone_weights or args.init_from)
    frozen_norms = started if resume is None else read_state(resume)["meta"]["frozen_norms"]
    if accelerator.num_processes > 1 and accelerator.device.type != "cpu":
        model = convert_sync_batchnorm(model)  # the cascade's box heads, as Swin has them; PyTorch has it on accelerators only

    broken = BrokenImages(args.max_broken, len(dataset))
    loader = MapLoader(dataset, collate, args, accelerator, broken)
    if args.lr == LR and loader.images_per_update != GLOBAL_BATCH:
        accelerator.print(f"--lr {LR} is for a global batch of {GLOBAL_BATCH}; this one is of {loader.images_per_update}")
    optimizer = dense.make_optimizer(args, model)
    sizes = f"{args.min_size[0]} to {args.min_size[-1]}" if len(args.min_size) > 1 else str(args.min_size[0])
    task = Task(
        name=title(args),
        model=model,
        optimizer=optimizer,
        scheduler=make_scheduler(args, optimizer, loader.updates_per_epoch),
        plan=make_plan(args, loader, "box_AP", args.epochs, sched_on_updates=True),
        loader=loader,
        batch_loss=make_batch_loss(model.backbone.backbone if frozen_norms else None),
        evaluate=Evaluator(val, has_masks(args), args, accelerator, broken),
        broken=broken,
        meta={
            "model": args.model,
            "detector": args.detector,
            "neck": args.neck,
            "num_classes": len(split.classes),
            "frozen_norms": frozen_norms,
            "classes": split.classes,
            "order": {"seed": args.seed, "global batch": loader.images_per_update, "images": len(dataset)},
            "recipe": recipe_of(args, INCIDENTAL),
        },
        data=f"{len(dataset)} training and {len(val.images)} validation images of {len(split.classes)} classes at {sizes}",
        curves=("box_AP", "mask_AP"),
        example=(args.batch_size, 3, args.min_size[-1], args.max_size),
        core=CORE,
    )
    fit(args, accelerator, task, resume)


def title(args: argparse.Namespace) -> str:
    return f"{args.detector} on {args.model} with {args.neck}"


def has_masks(args: argparse.Namespace) -> bool:
    return args.detector != "retinanet"


def open_train(args: argparse.Namespace, accelerator: Accelerator) -> tuple[Split, TrainImages]:
    """The split, without its annotations, and its images to train on."""
    split = open_split(Path(args.data_dir), args.train_split, has_masks(args))
    records, left_out = split.targets(has_masks(args))
    if left_out:
        accelerator.print(f"{split.source}: left out {len(left_out)} objects without area in their image: {shorten(left_out)}")
    filled = [record for record in records if record["boxes"]]
    if not filled:
        raise UsageError(f"{split.source} has no object to learn from on any of its {len(records)} images")
    split.annotations = []  # gigabytes in COCO; the workers, which start as copies of this process, would come to hold them too
    return split, TrainImages(split.folder, records if args.keep_empty else filled, has_masks(args), args.seed, args.max_broken)


def open_val(args: argparse.Namespace, accelerator: Accelerator) -> Split:
    split = open_split(Path(args.data_dir), args.val_split, has_masks(args))
    _, without_area = split.targets(has_masks(args))
    if without_area:
        accelerator.print(
            f"{split.source}: {len(without_area)} objects without area in their image, which COCO's evaluation counts like all others: "
            f"{shorten(without_area)}"
        )
    if all(row.get("iscrowd") for row in split.annotations):
        raise UsageError(f"{split.source} has no object that could be found on any of its {len(split.images)} images")
    return split


def build_model(args: argparse.Namespace, num_classes: int) -> Any:
    create = partial(create_detector, args.model, args.detector, args.neck, num_classes, args.min_size, args.max_size)
    return dense.build_model(args, DROP_PATH, create)


def make_batch_loss(frozen: nn.Module | None) -> BatchLoss:
    """`frozen`: where BatchNorm keeps its statistics, if anywhere."""
    norms = [module for module in frozen.modules() if isinstance(module, _BatchNorm)] if frozen is not None else []

    def batch_loss(model: nn.Module, batch: tuple[list[Tensor], list[dict[str, Tensor]]], epoch: int) -> dict[str, Tensor]:
        images, targets = batch
        for norm in norms:
            norm.eval()
        return model([image.float() / 255 for image in images], targets)

    return batch_loss


if __name__ == "__main__":
    run_program(main)
