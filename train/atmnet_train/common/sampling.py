"""Samplers: which samples make which batch is a function of seed, epoch and position alone."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from .seeding import ORDER, derive_seed


class SampleKey(NamedTuple):
    """Key with which a dataset loads one training sample the same way every time."""

    epoch: int
    position: int  # in the global order of the epoch
    index: int  # type: ignore[assignment]  # in the dataset; it hides tuple.index


def names_digest(names: Iterable[str]) -> str:
    """A digest of the samples of a data set by their sorted names, short enough for a message: a place in an epoch is one in theirs."""
    found = hashlib.sha256()
    for name in sorted(names):
        found.update(name.encode(errors="surrogateescape") + b"\0")
    return found.hexdigest()[:16]


class GlobalBatchSampler(Sampler[list[SampleKey]]):
    """Shards the batches of an epoch across processes.

    The epoch has one global order, split into batches of `batch_size * num_processes`; a process takes every num_processes-th sample
    of each, so the samples of a global batch do not depend on the number of processes.

    `repeats` is repeated augmentation (as timm's RepeatAugSampler): each image comes `repeats` times in a row, differently augmented,
    on different processes where there are several; an epoch is as long as without it, so it sees a part of the images.

    The incomplete update at the end of the epoch is dropped. With `updates_per_epoch`, an epoch is that many updates of an endless row of
    shuffles instead, in which the next epoch goes on. `set_epoch(epoch, start)` begins at batch `start`, loading nothing before.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        batches_per_update: int,
        num_processes: int,
        process_index: int,
        seed: int,
        repeats: int = 1,
        updates_per_epoch: int | None = None,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.seed = seed
        self.repeats = max(1, repeats)
        self.endless = updates_per_epoch is not None
        updates = length // (batch_size * num_processes * batches_per_update) if updates_per_epoch is None else updates_per_epoch
        self.batches = updates * batches_per_update
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch = epoch
        self.start = start

    def order(self) -> torch.Tensor:
        """Dataset indices by global position."""
        if not self.endless:
            return self._shuffle(self.epoch)
        samples = self.batches * self.batch_size * self.num_processes
        first = self.epoch * samples
        shuffles = range(first // self.length, (first + samples - 1) // self.length + 1)
        row = torch.cat([self._shuffle(number) for number in shuffles])
        return row[first - shuffles[0] * self.length :][:samples]

    def _shuffle(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, ORDER, number))
        order = torch.randperm(self.length, generator=generator)
        return order.repeat_interleave(self.repeats)[: self.length] if self.repeats > 1 else order

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order, step, epoch = self.order(), self.batch_size * self.num_processes, self.epoch
        for batch in range(self.start, self.batches):
            positions = range(batch * step + self.process_index, (batch + 1) * step, self.num_processes)
            yield [SampleKey(epoch, position, int(order[position])) for position in positions]

    def __len__(self) -> int:
        return self.batches
