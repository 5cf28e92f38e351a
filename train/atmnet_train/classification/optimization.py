"""Optimizer, learning rate and loss of train/imagenet.py."""

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from ..common.errors import UsageError
from .distillation import Teacher
from .settings import MixingSettings, OptimizerSettings, ScheduleSettings


def learning_rate(optimizer: OptimizerSettings, schedule: ScheduleSettings, global_batch: int) -> float:
    """Rate scaled linearly with the global batch, which is what one update sees however it is spread."""
    lr = optimizer.lr if optimizer.lr is not None else optimizer.lr_base * global_batch / optimizer.lr_base_size
    if schedule.sched != "step" and lr < schedule.min_lr:
        raise UsageError(
            f"the learning rate {lr:.3g} for a global batch of {global_batch} is below "
            f"--min-lr {schedule.min_lr:.3g}: give --lr, or a smaller --min-lr"
        )
    if schedule.warmup_epochs and schedule.warmup_lr > lr:
        raise UsageError(f"--warmup-lr {schedule.warmup_lr:.3g} lies above the learning rate {lr:.3g} that a warm-up leads to")
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


class BatchLoss:
    """Loss of a batch, of images or clips: mixup or cutmix with soft targets, or label smoothing alone; with a teacher, its answers."""

    def __init__(self, settings: MixingSettings, num_classes: int, teacher: Teacher | None = None) -> None:
        self.off_epoch, self.mixup, self.teacher = settings.mixup_off_epoch, None, teacher
        if settings.mixup > 0 or settings.cutmix > 0:
            self.mixup = Mixup(
                mixup_alpha=settings.mixup,
                cutmix_alpha=settings.cutmix,
                prob=settings.mixup_prob,
                switch_prob=settings.mixup_switch_prob,
                label_smoothing=settings.smoothing,
                num_classes=num_classes,
            )
        self.criterion = SoftTargetCrossEntropy() if self.mixup else LabelSmoothingCrossEntropy(settings.smoothing)

    def mix(self, images: Tensor, targets: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mixes a batch, in place."""
        # Where nothing could be read the target is -1; the run is about to end, and the other processes wait for this update.
        targets = targets.clamp(min=0)
        if self.mixup is None:
            return images, targets
        self.mixup.mixup_enabled = not self.off_epoch or epoch < self.off_epoch
        # The frames of a clip, as channels: cutmix looks for height and width where an image has them.
        mixed, shares = self.mixup(images.flatten(1, -3), targets)
        return mixed.view_as(images), shares

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor], epoch: int) -> Tensor:
        images, targets = self.mix(*batch, epoch)
        return self.criterion(model(images), targets) if self.teacher is None else self.teacher.loss(model(images), images)
