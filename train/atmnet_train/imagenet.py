"""Train an ATMNet, or any timm model, on ImageNet or any labelled images: `accelerate launch train/imagenet.py --help`."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from atmnet import canonical_name
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from .classification.images import NO_DATA, Images, open_split
from .classification.loaders import Evaluator, train_loader
from .classification.model import build_model, classes_for_eval, start_from
from .classification.recipe import INCIDENTAL, as_trained, learning_rate, parse
from .common.broken import BrokenImages
from .common.engine import BatchLoss, end_quietly
from .common.errors import UsageError, run_program
from .common.flags import recipe_of
from .common.runtime import check_runtime_flags, make_accelerator
from .common.seeding import seed_everything
from .common.summary import versions, write_json
from .common.task import Task, claim_output, fit, make_plan
from .common.weights import load_weights, read_weights, shorten


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    check_runtime_flags(args)
    if not args.data_dir and not args.dataset:
        raise UsageError(NO_DATA)
    if args.eval:
        evaluate(args)
    else:
        train(args)


def evaluate(args: argparse.Namespace) -> None:
    """`--eval`: top-1 and top-5 of a checkpoint."""
    weights = read_weights(args.eval, args.ema)
    name = canonical_name(args.model or weights.meta.get("model") or "")
    if not name:
        raise UsageError(f"{weights.source} does not say which model it is: give --model")
    if weights.meta.get("model", name) != name:
        raise UsageError(f"{weights.source} holds {weights.meta['model']}, not --model {name}")
    as_trained(args, weights.meta)
    args.output = args.output or f"output/{name}"
    accelerator = make_accelerator(args)  # first: a streamed data set is dealt out among the processes there are
    num_classes = weights.num_classes or args.num_classes or 1000
    images = open_split(args, args.val_split, classes_for_eval(args, weights, num_classes), training=False)
    check_classes(images, num_classes, f"the checkpoint {weights.source}")
    model = build_model(args, name, num_classes)
    load_weights(model, weights)
    # Placed here: under FSDP, Accelerate leaves a model that is not trained where it is.
    model = accelerator.prepare_model(model.to(accelerator.device), evaluation_mode=True)
    if args.compile:
        model.compile()
    mean, std = normalisation(model)
    broken = BrokenImages(args.max_broken, len(images.source))
    began = time.perf_counter()
    result = Evaluator(images, args, accelerator, mean, std, broken)({"model": model})["model"]
    seconds = time.perf_counter() - began
    accelerator.print(
        f"{name} · {weights.source} · {result['images']:.0f} images at {args.img_size} · top-1 {result['top1']:.3f} · "
        f"top-5 {result['top5']:.3f} · loss {result['loss']:.4f} · {result['images'] / seconds:.0f} images/s"
    )
    if accelerator.is_main_process:
        report = {"checkpoint": weights.source, "model": name, "ema": args.ema, "img_size": args.img_size, "crop_pct": args.crop_pct}
        write_json(
            Path(args.output) / "eval.json",
            report | result | {"seconds": seconds, "unreadable": broken.found, "versions": versions()},
        )
    end_quietly(accelerator)


def train(args: argparse.Namespace) -> None:
    name = canonical_name(args.model or "atmnet_t")
    args.output = args.output or f"output/{name}"
    resume = claim_output(args)
    accelerator = make_accelerator(args, args.grad_accum_steps)
    images, val_images, num_classes = open_both(args)

    # The same weights on every process, whatever its number.
    seed_everything(args.seed)
    if args.init_from and resume is None:
        weights = read_weights(args.init_from, args.ema)
        model = start_from(args, name, num_classes, weights)
        accelerator.print(f"starting from {weights.source}" + (", with a new classifier" if weights.num_classes != num_classes else ""))
    else:
        model = build_model(args, name, num_classes)

    mean, std = normalisation(model)
    broken = BrokenImages(args.max_broken, len(images.source))
    loader = train_loader(images, args, accelerator, mean, std, broken)
    optimizer = make_optimizer(args, model, learning_rate(args, loader.images_per_update))
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched=args.sched,
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        cooldown_epochs=args.cooldown_epochs,
        min_lr=args.min_lr,
        warmup_lr=args.warmup_lr,
        decay_epochs=args.decay_epochs,
        decay_rate=args.decay_rate,
        step_on_epochs=not args.sched_on_updates,
        updates_per_epoch=loader.updates_per_epoch,
    )
    order = {
        "seed": args.seed,
        "global batch": loader.images_per_update,
        "images": len(images.source),
        "aug_repeats": args.aug_repeats,
    }
    task = Task(
        name=name,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        plan=make_plan(args, loader, "top1", epochs, sched_on_updates=args.sched_on_updates),
        loader=loader,
        batch_loss=make_batch_loss(args, num_classes),
        evaluate=Evaluator(val_images, args, accelerator, mean, std, broken),
        broken=broken,
        meta={
            "model": name,
            "num_classes": num_classes,
            "img_size": args.img_size,
            "classes": sorted(images.classes, key=images.classes.__getitem__) if images.classes else [],
            "order": order,
            "recipe": recipe_of(args, INCIDENTAL),
        },
        data=f"{len(images.source)} training and {len(val_images.source)} validation images of {num_classes} classes at {args.img_size}",
        curves=("top1",),
        example=(args.batch_size, 3, args.img_size, args.img_size),
        ema_decay=args.model_ema_decay,
        ema_warmup=args.model_ema_warmup,
    )
    fit(args, accelerator, task, resume)


def open_both(args: argparse.Namespace) -> tuple[Images, Images, int]:
    """Training and validation images, and the number of classes, all agreeing."""
    images = open_split(args, args.train_split, None, training=True)
    num_classes = args.num_classes or len(images.classes or ())
    if not num_classes:
        raise UsageError(f"--dataset {args.dataset} does not tell its classes: give --num-classes")
    check_classes(images, num_classes, "--num-classes")
    val_images = open_split(args, args.val_split, images.classes, training=False)
    if images.classes and val_images.classes and images.classes != val_images.classes:
        raise UsageError(
            f"the classes of {args.train_split} ({shorten(list(images.classes))}) and of {args.val_split} "
            f"({shorten(list(val_images.classes))}) differ"
        )
    return images, val_images, num_classes


def check_classes(images: Images, num_classes: int, owner: str) -> None:
    if images.classes and max(images.classes.values()) >= num_classes:
        raise UsageError(f"the data has {len(images.classes)} classes ({shorten(list(images.classes))}), {owner} only {num_classes}")


def normalisation(model: nn.Module) -> tuple[Any, Any]:
    config = getattr(getattr(model, "module", model), "pretrained_cfg", {})
    return config.get("mean") or (0.485, 0.456, 0.406), config.get("std") or (0.229, 0.224, 0.225)


def make_optimizer(args: argparse.Namespace, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    try:
        return create_optimizer_v2(
            model, opt=args.opt, lr=lr, weight_decay=args.weight_decay, momentum=args.momentum, layer_decay=args.layer_decay
        )
    except Exception as error:  # of timm, or of the library that the optimizer comes from
        raise UsageError(f"--opt {args.opt}: {error}") from error


def make_batch_loss(args: argparse.Namespace, num_classes: int) -> BatchLoss:
    """From a batch to its loss: mixup or cutmix with soft targets, or label smoothing alone."""
    mixup = None
    if args.mixup > 0 or args.cutmix > 0:
        mixup = Mixup(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            label_smoothing=args.smoothing,
            num_classes=num_classes,
        )
    criterion = SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(args.smoothing)

    def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor], epoch: int) -> Tensor:
        images, targets = batch
        # Where nothing could be read the target is -1; the run is about to end, and the other processes wait for this update.
        targets = targets.clamp(min=0)
        if mixup is not None:
            mixup.mixup_enabled = not args.mixup_off_epoch or epoch < args.mixup_off_epoch
            images, targets = mixup(images, targets)
        return criterion(model(images), targets)

    return batch_loss


if __name__ == "__main__":
    run_program(main)
