"""Train semantic segmentation on ADE20K, or on data in its layout: `accelerate launch train/ade20k.py --help`."""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from accelerate import Accelerator
from atmnet.dense.segmentation import Segmenter, create_segmenter
from common import dense
from common.broken import BrokenImages
from common.engine import end_quietly
from common.errors import UsageError, run_program
from common.flags import recipe_of
from common.loading import MapLoader
from common.report import versions, write_json
from common.run import Task, claim_output, fit, make_plan
from common.runtime import check_runtime_flags, make_accelerator
from common.seeding import seed_everything
from common.weights import load_weights, read_weights, shorten
from rich.console import Console
from segmentation.data import check_pairs, class_names, find_pairs, resolve_classes
from segmentation.evaluate import Evaluator, class_table, scores, to_rich, write_csv
from segmentation.recipe import DROP_PATH, INCIDENTAL, PROCESSES, RECIPES, from_checkpoint, make_scheduler, parse
from segmentation.samples import Batch, TrainPairs, collate
from segmentation.transforms import IGNORED, TrainTransform
from timm.data import resolve_model_data_config
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

AUXILIARY_WEIGHT = 0.4


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    check_runtime_flags(args)
    if args.eval:
        evaluate(args)
    else:
        train(args)


def evaluate(args: argparse.Namespace) -> None:
    """`--eval`: the mIoU of a checkpoint, and how it is made up of the classes."""
    weights = read_weights(args.eval)
    from_checkpoint(args, weights.meta, weights.source)
    accelerator = make_accelerator(args)
    classes = weights.meta["classes"]
    pairs = find_pairs(Path(args.data_dir), args.val_split)
    named = class_names(Path(args.data_dir), args.classes)
    if named and named != classes:
        raise UsageError(f"{weights.source} was trained on other classes: {shorten(classes)}; here {shorten(named)}")
    resolve_classes(classes, args.num_classes, pairs, check_pairs(pairs, args, accelerator))
    model = build_model(args, len(classes))
    load_weights(model, weights)
    mean, std = normalisation(model)
    # Placed here: under FSDP, Accelerate leaves a model that is not trained where it is.
    placed = accelerator.prepare_model(model.to(accelerator.device), evaluation_mode=True)
    if args.compile:
        placed.compile()
    broken = BrokenImages(args.max_broken, len(pairs))
    began = time.perf_counter()
    evaluator = Evaluator(pairs, classes, mean, std, args, accelerator, broken, args.multi_scale)
    confusion = evaluator.confusions({"": placed})[""]
    seconds, count = time.perf_counter() - began, len(pairs) - len(broken.found)
    if accelerator.is_main_process:
        result, rows, output = scores(confusion), class_table(confusion, classes), Path(args.output)
        Console().print(to_rich(rows))
        shown = " · ".join(f"{name} {value:.2f}" for name, value in result.items())
        scale = "multi-scale, mirrored" if args.multi_scale else "single scale"
        print(
            f"{title(args)} · {weights.source} · {count} images, {scale} · {shown} · {count / seconds:.1f} images/s · "
            f"{output}/eval.json, classes.csv, pictures",
            flush=True,
        )
        report = {name: getattr(args, name) for name in ("model", "head", "neck", "crop_size", "multi_scale")}
        facts = {"checkpoint": weights.source, "images": count, "seconds": seconds, "unreadable": broken.found, "versions": versions()}
        write_json(output / "eval.json", report | result | facts | {"classes": rows})
        write_csv(output / "classes.csv", rows)
    end_quietly(accelerator)


def train(args: argparse.Namespace) -> None:
    resume = claim_output(args)
    accelerator = make_accelerator(args, args.grad_accum_steps)
    root = Path(args.data_dir)
    pairs, val_pairs = find_pairs(root, args.train_split), find_pairs(root, args.val_split)
    together = [*pairs, *val_pairs]
    classes = resolve_classes(class_names(root, args.classes), args.num_classes, together, check_pairs(together, args, accelerator))

    # The same weights on every process, whatever its number.
    seed_everything(args.seed)
    model = build_model(args, len(classes))
    if resume is None:
        dense.start_weights(args, accelerator, model)
    mean, std = normalisation(model)
    model = with_shared_statistics(model, args, accelerator)

    broken = BrokenImages(args.max_broken, len(pairs))
    dataset = TrainPairs(pairs, TrainTransform(args.crop_size, mean, std, not args.no_aug), args.seed, args.max_broken)
    loader = MapLoader(dataset, collate, args, accelerator, broken, updates_per_epoch=args.eval_interval)
    recipe = RECIPES[args.head]
    if args.lr == recipe.lr and loader.images_per_update != PROCESSES * recipe.batch_size:
        accelerator.print(
            f"--lr {args.lr} is for a global batch of {PROCESSES * recipe.batch_size}; this one is of {loader.images_per_update}"
        )
    optimizer = dense.make_optimizer(args, model)
    task = Task(
        name=title(args),
        model=model,
        optimizer=optimizer,
        scheduler=make_scheduler(args, optimizer),
        plan=make_plan(args, loader, "mIoU", args.iterations // args.eval_interval, sched_on_updates=True, by_updates=True),
        loader=loader,
        batch_loss=batch_loss,
        evaluate=Evaluator(val_pairs, classes, mean, std, args, accelerator, broken),
        broken=broken,
        meta={
            "model": args.model,
            "head": args.head,
            "neck": args.neck,
            "num_classes": len(classes),
            "eval_interval": args.eval_interval,
            "classes": classes,
            "order": {"seed": args.seed, "global batch": loader.images_per_update, "images": len(pairs)},
            "recipe": recipe_of(args, INCIDENTAL),
        },
        data=f"{len(pairs)} training and {len(val_pairs)} validation images of {len(classes)} classes at {args.crop_size}",
        curves=("mIoU", "mAcc", "aAcc"),
        example=(args.batch_size, 3, args.crop_size, args.crop_size),
    )
    fit(args, accelerator, task, resume)


def title(args: argparse.Namespace) -> str:
    return f"{args.head} on {args.model}" + (f" with {args.neck}" if args.neck else "")


def build_model(args: argparse.Namespace, num_classes: int) -> Segmenter:
    return dense.build_model(args, DROP_PATH, partial(create_segmenter, args.model, args.head, args.neck, num_classes))


def normalisation(model: Segmenter) -> tuple[Any, Any]:
    config = resolve_model_data_config(model.backbone.net)
    return config["mean"], config["std"]


def with_shared_statistics(model: Segmenter, args: argparse.Namespace, accelerator: Accelerator) -> Any:
    """BatchNorm over the images of all processes: each has few. PyTorch has that on accelerators only."""
    shared = accelerator.num_processes > 1 and accelerator.device.type != "cpu"
    if args.head == "upernet" and args.batch_size * (accelerator.num_processes if shared else 1) == 1:
        raise UsageError("--batch-size 1: UperNet normalises over the images of a batch, so it takes two or more")
    return convert_sync_batchnorm(model) if shared else model


def batch_loss(model: nn.Module, batch: Batch, epoch: int) -> Tensor | dict[str, Tensor]:
    images, labels = batch
    logits, auxiliary = model(images)
    if auxiliary is None:
        return pixel_loss(logits, labels)
    return {"loss_head": pixel_loss(logits, labels), "loss_auxiliary": AUXILIARY_WEIGHT * pixel_loss(auxiliary, labels)}


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over all pixels, 0 for the ignored ones: it exists where all are, and does not depend on how a batch is dealt out."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").mean()


if __name__ == "__main__":
    run_program(main)
