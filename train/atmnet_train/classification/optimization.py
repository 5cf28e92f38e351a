"""Optimizer, learning rate and loss of train/imagenet.py."""

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from ..common.engine import BatchLoss
from ..common.errors import UsageError
from .distillation import Teacher
from .settings import AugmentationSettings, OptimizerSettings, ScheduleSettings


def learning_rate(optimizer: OptimizerSettings, schedule: ScheduleSettings, global_batch: int) -> float:
    """Rate scaled linearly with the global batch, which is what one update sees however it is spread."""
    lr = optimizer.lr if optimizer.lr is not None else optimizer.lr_base * global_batch / optimizer.lr_base_size
    if schedule.sched != "step" and lr < schedule.min_lr:
        raise UsageError(
            f"the learning rate {lr:.3g} for a global batch of {global_batch} is below "
            f"--min-lr {schedule.min_lr:.3g}: give --lr, or a smaller --min-lr"
        )
    return lr


def make_optimizer(settings: OptimizerSettings, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    try:
        return create_optimizer_v2(
            model,
            opt=settings.opt,
            lr=lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            layer_decay=settings.layer_decay,
        )
    except Exception as error:  # of timm, or of the library that the optimizer comes from
        raise UsageError(f"--opt {settings.opt}: {error}") from error


def make_scheduler(settings: ScheduleSettings, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> tuple[Scheduler, int]:
    """Makes the schedule, and tells the number of epochs that it takes, cooldown and all."""
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched=settings.sched,
        num_epochs=settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        cooldown_epochs=settings.cooldown_epochs,
        min_lr=settings.min_lr,
        warmup_lr=settings.warmup_lr,
        decay_epochs=settings.decay_epochs,
        decay_rate=settings.decay_rate,
        step_on_epochs=not settings.sched_on_updates,
        updates_per_epoch=updates_per_epoch,
    )
    assert scheduler is not None
    return scheduler, epochs


def make_batch_loss(settings: AugmentationSettings, num_classes: int, teacher: Teacher | None = None) -> BatchLoss:
    """Makes the loss of a batch: mixup or cutmix with soft targets, or label smoothing alone; with a teacher, its answers to the images."""
    mixup = None
    if settings.mixup > 0 or settings.cutmix > 0:
        mixup = Mixup(
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            prob=settings.mixup_prob,
            switch_prob=settings.mixup_switch_prob,
            label_smoothing=settings.smoothing,
            num_classes=num_classes,
        )
    criterion = SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(settings.smoothing)

    def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor], epoch: int) -> Tensor:
        images, targets = batch
        # Where nothing could be read the target is -1; the run is about to end, and the other processes wait for this update.
        targets = targets.clamp(min=0)
        if mixup is not None:
            mixup.mixup_enabled = not settings.mixup_off_epoch or epoch < settings.mixup_off_epoch
            images, targets = mixup(images, targets)
        return criterion(model(images), targets) if teacher is None else teacher.loss(model(images), images)

    return batch_loss
