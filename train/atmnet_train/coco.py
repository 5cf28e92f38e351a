"""Train an object detector on COCO, or on data in its layout: `python train/coco.py --help`."""

from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from atmnet.dense.detection import create_detector
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .common import dense
from .common.broken import BrokenImages
from .common.checkpoints import read_state
from .common.engine import BatchLoss
from .common.errors import UsageError, run_program
from .common.loading import MapLoader
from .common.program import Program
from .common.runtime import make_accelerator
from .common.sampling import names_digest
from .common.seeding import seed_everything
from .common.settings import recipe_of
from .common.task import Task, claim_output, fit, make_plan
from .common.trial import Trial, run_trial
from .common.weights import Weights, shorten
from .detection.annotations import Split, doubts, open_split
from .detection.data import TrainImages, collate
from .detection.evaluate import Evaluator
from .detection.pictures import batch_examples
from .detection.schedule import make_scheduler
from .detection.settings import GLOBAL_BATCH, Settings, by_model_and_schedule, check, derived, from_checkpoint, recipe

CORE = "backbone"  # with the neck; what follows depends on what is found in an image


def evaluate(settings: Settings, weights: Weights) -> None:
    """`--eval`: the AP of a checkpoint."""
    accelerator = make_accelerator(settings.run)
    val = open_val(settings, accelerator)
    if val.classes != weights.said("classes"):
        raise UsageError(
            f"{weights.source} was trained on {len(weights.meta['classes'])} classes ({shorten(weights.meta['classes'])}), "
            f"{val.source} has {len(val.classes)} ({shorten(val.classes)})"
        )
    broken = BrokenImages(settings.data.max_broken, len(val.images))

    def in_words(found: dict[str, Any]) -> str:
        shown = [f"{name.replace('_', ' ', 1)} {value:.2f}" for name, value in found.items() if name != "images"]
        return " · ".join([f"{found['images']:.0f} images", *shown])

    trial = Trial(
        name=settings.model.title,
        settings=settings,
        report={
            "model": settings.model.model,
            "detector": settings.model.detector,
            "neck": settings.model.neck,
            "min_size": list(settings.data.min_size),
            "max_size": settings.data.max_size,
        },
        model=build_model(settings, len(val.classes)),
        evaluate=Evaluator(val, settings, accelerator, broken),
        broken=broken,
        in_words=in_words,
        files="detections.json, pictures",
        core=CORE,
    )
    run_trial(settings.run, accelerator, weights, trial)


def train(settings: Settings) -> None:
    run, data = settings.run, settings.data
    resume = claim_output(run)
    accelerator = make_accelerator(run, data.grad_accum_steps)
    split, dataset, names = open_train(settings, accelerator)
    val = open_val(settings, accelerator)
    if split.folder.samefile(val.folder) and (
        both := {image["file_name"] for image in split.images} & {image["file_name"] for image in val.images}
    ):
        accelerator.print(f"{len(both)} images of {val.source} are trained on too: what is measured on them says nothing of others")
    if (split.category_ids, split.classes) != (val.category_ids, val.classes):
        raise UsageError(f"the categories of {split.source} ({shorten(split.classes)}) and of {val.source} ({shorten(val.classes)}) differ")

    # The same weights on every process, whatever its number.
    seed_everything(run.seed)
    model = build_model(settings, len(split.classes))
    if resume is None:
        dense.start_weights(settings.model, accelerator, model)
    # The few images of a batch give no statistics: a backbone that starts from weights keeps those of its pretraining.
    started = bool(settings.model.pretrained or settings.model.backbone_weights or settings.model.init_from)
    frozen_norms = started if resume is None else bool(read_state(resume, accelerator.is_main_process)["meta"].get("frozen_norms"))
    if accelerator.num_processes > 1 and accelerator.device.type != "cpu":
        model = convert_sync_batchnorm(model)  # the cascade's box heads, as Swin has them; PyTorch has it on accelerators only

    broken = BrokenImages(data.max_broken, len(dataset))
    loader = MapLoader(dataset, collate, data, run.seed, accelerator, broken)
    lr = settings.optimizer.lr
    if lr == recipe(settings.schedule.schedule)["lr"] and loader.images_per_update != GLOBAL_BATCH:
        accelerator.print(f"--lr {lr} is for a global batch of {GLOBAL_BATCH}; this one is of {loader.images_per_update}")
    optimizer = dense.make_optimizer(settings.optimizer, model)
    sizes = f"{min(data.min_size)} to {max(data.min_size)}" if len(data.min_size) > 1 else str(data.min_size[0])
    task = Task(
        name=settings.model.title,
        settings=settings,
        model=model,
        optimizer=optimizer,
        scheduler=make_scheduler(settings.schedule, lr, optimizer, loader.updates_per_epoch),
        plan=make_plan(
            run,
            loader,
            "box_AP",
            settings.schedule.epochs,
            data.grad_accum_steps,
            settings.optimizer.clip_grad,
            sched_on_updates=True,
        ),
        loader=loader,
        batch_loss=make_batch_loss(model.backbone.backbone if frozen_norms else None),
        evaluate=Evaluator(val, settings, accelerator, broken),
        broken=broken,
        meta={
            "model": settings.model.model,
            "detector": settings.model.detector,
            "neck": settings.model.neck,
            "num_classes": len(split.classes),
            "frozen_norms": frozen_norms,
            "classes": split.classes,
            "category_ids": split.category_ids,
            "order": {"seed": run.seed, "global batch": loader.images_per_update, "images": len(dataset), "names": names},
            "recipe": recipe_of(settings),
        },
        data=f"{len(dataset)} training and {len(val.images)} validation images of {len(split.classes)} classes at {sizes}",
        curves=("box_AP", "mask_AP"),
        example=(data.batch_size, 3, max(data.min_size), data.max_size),
        examples=lambda batch: batch_examples(batch[0], batch[1], split.classes),
        core=CORE,
    )
    fit(run, accelerator, task, resume)


def open_train(settings: Settings, accelerator: Accelerator) -> tuple[Split, TrainImages, str]:
    """The split, without its annotations, its images to train on, and the digest of their names."""
    data, masks = settings.data, settings.model.has_masks
    split = open_split(Path(data.data_dir), data.train_split, masks)
    for doubt in doubts(split):
        accelerator.print(doubt)
    records, left_out = split.targets(masks)
    if left_out:
        accelerator.print(f"{split.source}: left out {len(left_out)} objects without area in their image: {shorten(left_out)}")
    filled = [record for record in records if record["boxes"]]
    if not filled:
        raise UsageError(f"{split.source} has no object to learn from on any of its {len(records)} images")
    split.annotations = []  # gigabytes in COCO; the workers, which start as copies of this process, would come to hold them too
    chosen = records if data.keep_empty else filled
    names = names_digest(f"{record['id']} {record['file_name']}" for record in chosen)
    return split, TrainImages(split.folder, chosen, masks, settings.run.seed, data.max_broken), names


def open_val(settings: Settings, accelerator: Accelerator) -> Split:
    masks = settings.model.has_masks
    split = open_split(Path(settings.data.data_dir), settings.data.val_split, masks)
    for doubt in doubts(split):
        accelerator.print(doubt)
    _, without_area = split.targets(masks)
    if without_area:
        accelerator.print(
            f"{split.source}: {len(without_area)} objects without area in their image, which COCO's evaluation counts like all others: "
            f"{shorten(without_area)}"
        )
    if all(row.get("iscrowd") for row in split.annotations):
        raise UsageError(f"{split.source} has no object that could be found on any of its {len(split.images)} images")
    return split


def build_model(settings: Settings, num_classes: int) -> Any:
    model, sizes = settings.model, (sorted(settings.data.min_size), settings.data.max_size)
    return dense.build_model(model, partial(create_detector, model.model, model.detector, model.neck, num_classes, *sizes), 64)


def make_batch_loss(frozen: nn.Module | None) -> BatchLoss:
    """`frozen`: where BatchNorm keeps its statistics, if anywhere."""
    norms = [module for module in frozen.modules() if isinstance(module, _BatchNorm)] if frozen is not None else []

    def batch_loss(model: nn.Module, batch: tuple[list[Tensor], list[dict[str, Tensor]]], epoch: int) -> dict[str, Tensor]:
        images, targets = batch
        for norm in norms:
            norm.eval()
        return model([image.float() / 255 for image in images], targets)

    return batch_loss


PROGRAM = Program(
    name="coco.py",
    description="Train or evaluate an object detector on COCO, or on data in its layout.",
    settings=Settings,
    from_checkpoint=from_checkpoint,
    dependent=[by_model_and_schedule, derived],
    check=check,
    train=train,
    evaluate=evaluate,
)
parse, main = PROGRAM.parse, PROGRAM.main

if __name__ == "__main__":
    run_program(main)
