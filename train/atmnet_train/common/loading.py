"""Training batches from a map-style data set, on the device."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from .broken import BrokenImages
from .errors import UsageError
from .sampling import GlobalBatchSampler
from .stop import worker_init

Batch = Any


class TrainLoader(Protocol):
    """The micro-batches of any epoch from any place on."""

    updates_per_epoch: int
    images_per_update: int  # over all processes

    def batches(self, epoch: int, start: int) -> Iterator[Batch]: ...


def loader_options(args: argparse.Namespace, accelerator: Accelerator, keep_workers: bool) -> dict[str, Any]:
    return {
        "num_workers": args.workers,
        "pin_memory": accelerator.device.type == "cuda",
        "persistent_workers": keep_workers and args.workers > 0,
        "worker_init_fn": worker_init(),
    }


def images_per_update(args: argparse.Namespace, accelerator: Accelerator) -> int:
    return args.batch_size * accelerator.num_processes * args.grad_accum_steps


def check_fills(args: argparse.Namespace, accelerator: Accelerator, images: int, updates: int) -> None:
    if updates == 0:
        raise UsageError(
            f"{images} training images do not fill one update of {images_per_update(args, accelerator)} "
            f"(--batch-size {args.batch_size} x {accelerator.num_processes} processes x --grad-accum-steps {args.grad_accum_steps}): "
            "give a smaller --batch-size"
        )


class MapLoader:
    """`dataset[SampleKey]` gives a sample, and `collate` a batch and the list of what could not be read on the way.

    An epoch is one pass over the data, or `updates_per_epoch` updates of shuffles that follow one another.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], tuple[Batch, list[Any]]],
        args: argparse.Namespace,
        accelerator: Accelerator,
        broken: BrokenImages,
        repeats: int = 1,
        updates_per_epoch: int | None = None,
    ) -> None:
        self.accelerator, self.broken = accelerator, broken
        length = len(dataset)  # type: ignore[arg-type]
        self.sampler = GlobalBatchSampler(
            length,
            args.batch_size,
            args.grad_accum_steps,
            accelerator.num_processes,
            accelerator.process_index,
            args.seed,
            repeats,
            updates_per_epoch,
        )
        self.updates_per_epoch = len(self.sampler) // args.grad_accum_steps
        self.images_per_update = images_per_update(args, accelerator)
        check_fills(args, accelerator, length, self.updates_per_epoch)
        options = loader_options(args, accelerator, keep_workers=True)
        self.loader = DataLoader(dataset, batch_sampler=self.sampler, collate_fn=collate, **options)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        self.sampler.set_epoch(epoch, start)
        for batch, unreadable in self.loader:
            self.broken.note(unreadable)
            yield send_to_device(batch, self.accelerator.device, non_blocking=True)
