"""Learning-rate schedule of train/coco.py."""

from timm.scheduler import MultiStepLRScheduler
from torch.optim import Optimizer

from ..common.errors import UsageError
from .settings import ScheduleSettings


def make_scheduler(settings: ScheduleSettings, lr: float, optimizer: Optimizer, updates_per_epoch: int) -> MultiStepLRScheduler:
    """Warm-up, then a tenth after each of the decay epochs, per update."""
    if settings.warmup_updates >= settings.epochs * updates_per_epoch:
        raise UsageError(
            f"--warmup-updates {settings.warmup_updates} leaves nothing of {settings.epochs} epochs of {updates_per_epoch} updates: "
            "give fewer"
        )
    return MultiStepLRScheduler(
        optimizer,
        decay_t=[round(updates_per_epoch * epoch) + 1 for epoch in settings.decay_epochs],  # timm decays one step earlier than it says
        decay_rate=0.1,
        warmup_t=settings.warmup_updates,
        warmup_lr_init=1e-3 * lr,
        warmup_prefix=False,
        t_in_epochs=False,
    )
