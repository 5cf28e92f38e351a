"""Learning-rate schedule of train/ade20k.py."""

from timm.scheduler import PolyLRScheduler
from torch.optim import Optimizer

from .settings import ScheduleSettings


def make_scheduler(settings: ScheduleSettings, lr: float, optimizer: Optimizer) -> PolyLRScheduler:
    """Polynomial decay per update, to 0 at the end."""
    return PolyLRScheduler(
        optimizer,
        t_initial=settings.iterations,
        power=settings.power,
        warmup_t=settings.warmup_updates,
        warmup_lr_init=1e-6 * lr,
        t_in_epochs=False,
    )
