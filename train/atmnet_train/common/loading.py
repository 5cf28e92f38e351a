"""Training batches from a map-style data set, on the device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from .broken import BrokenImages
from .errors import UsageError
from .runtime import default_workers
from .sampling import GlobalBatchSampler
from .settings import setting
from .stop import worker_init

Batch = Any
MOST_WORKERS = 1024  # more are a slip of the finger, and would bring the machine down before anything is said


@dataclass(frozen=True)
class LoadingSettings:
    """Loading of data."""

    batch_size: int = setting(128, "per process and micro-batch", "-b", metavar="N", at_least=1, incidental=True)
    grad_accum_steps: int = setting(1, "micro-batches per update", metavar="N", at_least=1, incidental=True)
    workers: int = setting(default_workers(), "data-loading workers per process", at_least=0, at_most=MOST_WORKERS, incidental=True)
    max_broken: int = setting(50, "unreadable images to skip before giving up", metavar="N", at_least=0, incidental=True)


class TrainLoader(Protocol):
    """The micro-batches of any epoch from any place on."""

    updates_per_epoch: int
    images_per_update: int  # over all processes

    def batches(self, epoch: int, start: int) -> Iterator[Batch]: ...


def loader_options(settings: LoadingSettings, accelerator: Accelerator, keep_workers: bool) -> dict[str, Any]:
    return {
        "num_workers": settings.workers,
        "pin_memory": accelerator.device.type == "cuda",
        "persistent_workers": keep_workers and settings.workers > 0,
        "worker_init_fn": worker_init(),
    }


def images_per_update(settings: LoadingSettings, accelerator: Accelerator) -> int:
    return settings.batch_size * accelerator.num_processes * settings.grad_accum_steps


def check_fills(settings: LoadingSettings, accelerator: Accelerator, images: int, updates: int) -> None:
    if updates == 0:
        raise UsageError(
            f"{images} training images do not fill one update of {images_per_update(settings, accelerator)} "
            f"(--batch-size {settings.batch_size} x {accelerator.num_processes} processes x "
            f"--grad-accum-steps {settings.grad_accum_steps}): give a smaller --batch-size"
        )


class MapLoader:
    """`dataset[SampleKey]` gives a sample, and `collate` a batch and the list of what could not be read on the way.

    An epoch is one pass over the data, or `updates_per_epoch` updates of shuffles that follow one another.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], tuple[Batch, list[Any]]],
        settings: LoadingSettings,
        seed: int,
        accelerator: Accelerator,
        broken: BrokenImages,
        repeats: int = 1,
        updates_per_epoch: int | None = None,
    ) -> None:
        self.accelerator, self.broken = accelerator, broken
        length = len(dataset)  # type: ignore[arg-type]
        self.sampler = GlobalBatchSampler(
            length,
            settings.batch_size,
            settings.grad_accum_steps,
            accelerator.num_processes,
            accelerator.process_index,
            seed,
            repeats,
            updates_per_epoch,
        )
        self.updates_per_epoch = len(self.sampler) // settings.grad_accum_steps
        self.images_per_update = images_per_update(settings, accelerator)
        check_fills(settings, accelerator, length, self.updates_per_epoch)
        options = loader_options(settings, accelerator, keep_workers=True)
        self.loader = DataLoader(dataset, batch_sampler=self.sampler, collate_fn=collate, **options)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        self.sampler.set_epoch(epoch, start)
        for batch, unreadable in self.loader:
            self.broken.note(unreadable)
            yield send_to_device(batch, self.accelerator.device, non_blocking=True)
