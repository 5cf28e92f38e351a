"""The training of a classifier, of images by train/imagenet.py or of videos by train/video.py."""

from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from ..common.pictures import Example
from ..common.seeding import STEP, seed_everything
from ..common.settings import recipe_of
from ..common.task import Task, make_plan
from .images import Images
from .model import normalisation
from .optimization import BatchLoss, learning_rate, make_optimizer, make_scheduler
from .pictures import batch_examples


def training_of(
    settings: Any,
    accelerator: Accelerator,
    model: nn.Module,
    images: Images,
    num_classes: int,
    loader: Any,
    batch_loss: BatchLoss,
    evaluator: Any,
    *,
    order: Mapping[str, Any],
    meta: Mapping[str, Any],
    shown: Callable[[Tensor], Tensor] = lambda batch: batch,
    **others: Any,
) -> Task:
    """The task of either program.

    `settings` are the program's; `order` and `meta`: what it adds to what its checkpoints say of their data and of themselves; `shown`:
    images that show a batch; `others`: what else a Task has.
    """
    run, optimization, schedule = settings.run, settings.optimizer, settings.schedule
    optimizer = make_optimizer(optimization, model, learning_rate(optimization, schedule, loader.images_per_update))
    scheduler, epochs = make_scheduler(schedule, optimizer, loader.updates_per_epoch)
    steps = settings.data.grad_accum_steps, optimization.clip_grad
    mean, std = normalisation(model)

    def examples(batch: Any) -> list[Example]:
        seed_everything(run.seed, STEP, 0, 0, accelerator.process_index)  # as the first update will
        inputs, targets = batch
        inputs, targets = batch_loss.mix(inputs.clone(), targets, epoch=0)
        return batch_examples(shown(inputs), targets, evaluator.class_name, mean, std)

    said = {
        "model": settings.model.model,
        "num_classes": num_classes,
        "img_size": settings.data.img_size,
        "classes": sorted(images.classes, key=images.classes.__getitem__) if images.classes else [],
        "order": {"seed": run.seed, "global batch": loader.images_per_update, **order},
        "recipe": recipe_of(settings),
    }
    return Task(
        name=settings.model.model,
        settings=settings,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        plan=make_plan(run, loader, "top1", epochs, *steps, sched_on_updates=schedule.sched_on_updates),
        loader=loader,
        batch_loss=batch_loss,
        evaluate=evaluator,
        meta=said | dict(meta),
        curves=("top1",),
        examples=examples,
        ema_decay=optimization.model_ema_decay,
        ema_warmup=optimization.model_ema_warmup,
        **others,
    )
