"""Train semantic segmentation on ADE20K, or on data in its layout: `python train/ade20k.py --help`."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from atmnet.dense.backbone import STRIDES
from atmnet.dense.segmentation import Segmenter, create_segmenter
from atmnet.labels import nameless
from timm.data import resolve_model_data_config
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from .common import dense
from .common.broken import BrokenImages
from .common.errors import UsageError, run_program
from .common.listing import tell_of_overlap
from .common.loading import MapLoader
from .common.program import Program
from .common.runtime import make_accelerator
from .common.sampling import names_digest
from .common.seeding import seed_everything
from .common.settings import recipe_of
from .common.task import Task, claim_output, fit, make_plan
from .common.trial import Trial, run_trial
from .common.weights import Weights, shorten
from .segmentation.data import check_labels, check_pairs, class_names, find_pairs, resolve_classes, split_folder, untrained
from .segmentation.evaluate import METRICS, Evaluator
from .segmentation.optimizer import make_optimizer
from .segmentation.pictures import batch_examples
from .segmentation.samples import Batch, TrainPairs, collate
from .segmentation.schedule import make_scheduler
from .segmentation.settings import PROCESSES, Settings, by_model_and_head, check, derived, from_checkpoint, recipe
from .segmentation.transforms import IGNORED, TrainTransform

AUXILIARY_WEIGHT = 0.4


def evaluate(settings: Settings, weights: Weights) -> None:
    """`--eval`: the mIoU of a checkpoint, and how it is made up of the classes."""
    accelerator = make_accelerator(settings.run)
    model_settings, data, evaluation = settings.model, settings.data, settings.evaluation
    pairs = find_pairs(Path(data.data_dir), data.val_split, accelerator.print)
    held = [] if weights.published else weights.said("classes")
    number = weights.said("num_classes") if weights.published else len(held)  # the authors' files tell how many alone
    named = class_names(Path(data.data_dir), data.classes)
    told = shorten(held) or number
    if named and (named != held if held else len(named) != number):
        raise UsageError(f"{weights.source} was trained on other classes: {told}; here {shorten(named)}")
    if data.num_classes not in (None, number):
        raise UsageError(f"--num-classes {data.num_classes}, but {weights.source} was trained on {number}" + f": {told}" * bool(held))
    check_labels(number, pairs, check_pairs(pairs, data.workers, accelerator))
    classes = held or named or nameless(number)
    model = build_model(settings, len(classes))
    broken = BrokenImages(data.max_broken, len(pairs))
    evaluator = Evaluator(pairs, classes, *normalisation(model), settings, accelerator, broken, evaluation.multi_scale)

    def in_words(found: dict[str, Any]) -> str:
        scale = "multi-scale, mirrored" if evaluation.multi_scale else "single scale"
        return " · ".join([f"{found['images']} images, {scale}", *(f"{name} {found[name]:.2f}" for name in METRICS)])

    trial = Trial(
        name=title(settings),
        settings=settings,
        report={
            "model": model_settings.model,
            "head": model_settings.head,
            "neck": model_settings.neck,
            "crop_size": data.crop_size,
            "multi_scale": evaluation.multi_scale,
        },
        model=model,
        evaluate=evaluator,
        broken=broken,
        in_words=in_words,
        files="pictures",
    )
    run_trial(settings.run, accelerator, weights, trial)


def train(settings: Settings) -> None:
    run, data, schedule = settings.run, settings.data, settings.schedule
    resume = claim_output(run)
    accelerator = make_accelerator(run, data.grad_accum_steps)
    root = Path(data.data_dir)
    pairs, val_pairs = (find_pairs(root, split, accelerator.print) for split in (data.train_split, data.val_split))
    train_folder, val_folder = (split_folder(root / "images", split) for split in (data.train_split, data.val_split))
    tell_of_overlap(train_folder, val_folder, accelerator.print)
    together = [*pairs, *val_pairs]
    labels = check_pairs(together, data.workers, accelerator)
    classes = resolve_classes(class_names(root, data.classes), data.num_classes, together, labels)
    if missing := untrained(classes, labels[: len(pairs)], labels[len(pairs) :]):
        accelerator.print(f"{len(missing)} of the {len(classes)} classes never occur in {data.train_split}: {shorten(missing)}")

    # The same weights on every process, whatever its number.
    seed_everything(run.seed)
    model = build_model(settings, len(classes))
    if resume is None:
        dense.start_weights(settings.model, accelerator, model)
    mean, std = normalisation(model)
    model = with_shared_statistics(model, settings, accelerator)

    broken = BrokenImages(data.max_broken, len(pairs))
    dataset = TrainPairs(pairs, TrainTransform(data.crop_size, mean, std, not data.no_aug), run.seed, data.max_broken)
    loader = MapLoader(dataset, collate, data, run.seed, accelerator, broken, updates_per_epoch=schedule.eval_interval)
    usual = recipe(settings.model.head)
    if settings.optimizer.lr == usual["lr"] and loader.images_per_update != PROCESSES * usual["batch_size"]:
        accelerator.print(
            f"--lr {usual['lr']} is for a global batch of {PROCESSES * usual['batch_size']}; this one is of {loader.images_per_update}"
        )
    optimizer = make_optimizer(settings.optimizer, model, settings.model.head)
    task = Task(
        name=title(settings),
        settings=settings,
        model=model,
        optimizer=optimizer,
        scheduler=make_scheduler(schedule, settings.optimizer.lr, optimizer),
        plan=make_plan(
            run,
            loader,
            "mIoU",
            schedule.iterations // schedule.eval_interval,
            data.grad_accum_steps,
            settings.optimizer.clip_grad,
            sched_on_updates=True,
            by_updates=True,
        ),
        loader=loader,
        batch_loss=batch_loss,
        evaluate=Evaluator(val_pairs, classes, mean, std, settings, accelerator, broken),
        broken=broken,
        meta={
            "model": settings.model.model,
            "head": settings.model.head,
            "neck": settings.model.neck,
            "num_classes": len(classes),
            "eval_interval": schedule.eval_interval,
            "classes": classes,
            "order": {
                "seed": run.seed,
                "global batch": loader.images_per_update,
                "images": len(pairs),
                "names": names_digest(str(pair.image.relative_to(root)) for pair in pairs),
            },
            "recipe": recipe_of(settings),
        },
        data=f"{len(pairs)} training and {len(val_pairs)} validation images of {len(classes)} classes at {data.crop_size}",
        curves=("mIoU", "mAcc", "aAcc"),
        example=(data.batch_size, 3, data.crop_size, data.crop_size),
        examples=lambda batch: batch_examples(batch[0], batch[1], len(classes), mean, std),
    )
    fit(run, accelerator, task, resume)


def title(settings: Settings) -> str:
    model = settings.model
    return f"{model.head} on {model.model}" + (f" with {model.neck}" if model.neck else "")


def build_model(settings: Settings, num_classes: int) -> Segmenter:
    model = settings.model
    return dense.build_model(model, partial(create_segmenter, model.model, model.head, model.neck, num_classes), settings.data.crop_size)


def normalisation(model: Segmenter) -> tuple[Any, Any]:
    config = resolve_model_data_config(model.backbone.net)
    return config["mean"], config["std"]


def with_shared_statistics(model: Segmenter, settings: Settings, accelerator: Accelerator) -> Any:
    """BatchNorm over the images of all processes: each has few. PyTorch has that on accelerators only; on CPUs each process has its own."""
    shared = accelerator.num_processes > 1 and accelerator.device.type != "cpu"
    if settings.data.batch_size * (accelerator.num_processes if shared else 1) == 1:
        if settings.model.head == "upernet":
            raise UsageError("--batch-size 1: UperNet normalises over the images of a batch, so it takes two or more")
        if coarsest_is_a_point(model.backbone, settings.data.crop_size):
            raise UsageError(
                f"--batch-size 1 --crop-size {settings.data.crop_size}: the coarsest map of such an image is 1 x 1, and Semantic FPN "
                "normalises over a batch: give a larger batch or crop"
            )
    return convert_sync_batchnorm(model) if shared else model


@torch.no_grad()
def coarsest_is_a_point(backbone: nn.Module, side: int) -> bool:
    if side >= 2 * STRIDES[-1]:
        return False
    device = next(backbone.parameters()).device
    coarsest = backbone.eval()(torch.zeros(1, 3, side, side, device=device))[-1]
    backbone.train()
    return coarsest.shape[2:] == (1, 1)


def batch_loss(model: nn.Module, batch: Batch, epoch: int) -> Tensor | dict[str, Tensor]:
    images, labels = batch
    logits, auxiliary = model(images)
    if auxiliary is None:
        return pixel_loss(logits, labels)
    return {"loss_head": pixel_loss(logits, labels), "loss_auxiliary": AUXILIARY_WEIGHT * pixel_loss(auxiliary, labels)}


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over all pixels, 0 for the ignored ones: it exists where all are, and does not depend on how a batch is sharded."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").mean()


PROGRAM = Program(
    name="ade20k.py",
    description="Train or evaluate semantic segmentation on ADE20K, or on data in its layout.",
    settings=Settings,
    from_checkpoint=from_checkpoint,
    dependent=[by_model_and_head, derived],
    check=check,
    train=train,
    evaluate=evaluate,
)
parse, main = PROGRAM.parse, PROGRAM.main

if __name__ == "__main__":
    run_program(main)
