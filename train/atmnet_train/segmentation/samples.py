"""Datasets: augmented samples for training, whole images for evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from atmnet.images import ImageError, open_image
from atmnet.predicting.views import EvalTransform
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

from ..common.broken import Unreadable, first_readable, load_or_tell
from ..common.sampling import SampleKey
from ..common.seeding import SAMPLE, seed_sample
from .data import Pair
from .labels import read_labels
from .transforms import IGNORED

Batch = tuple[Tensor, Tensor]


def read_pair(pair: Pair) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Image `[3, H, W]` and labels `[H, W]`, both of bytes; the labels from 0 on, and `IGNORED`."""
    image = pil_to_tensor(open_image(pair.image))
    labels = torch.from_numpy(read_labels(pair.annotation)) - 1  # bytes wrap round: 0, which is ignored, becomes 255
    if image.shape[1:] != labels.shape:
        raise ImageError(f"it is {image.shape[2]} x {image.shape[1]}, {pair.annotation} {labels.shape[1]} x {labels.shape[0]}")
    return tv_tensors.Image(image), tv_tensors.Mask(labels)


class TrainPairs(Dataset[tuple[Batch, list[Unreadable]]]):
    """Augments each sample with random numbers of its own; in place of an unreadable image comes the next readable one."""

    def __init__(self, pairs: Sequence[Pair], transform: Callable[[Tensor, Tensor], Batch], seed: int, max_broken: int) -> None:
        self.pairs, self.transform, self.seed, self.max_broken = pairs, transform, seed, max_broken

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: SampleKey) -> tuple[Batch, list[Unreadable]]:
        def load(index: int) -> Batch:
            image, labels = read_pair(self.pairs[index])
            seed_sample(self.seed, SAMPLE, key.epoch, key.position)
            return self.transform(image, labels)

        found, broken = first_readable(load, lambda index: str(self.pairs[index].image), key.index, len(self), self.max_broken)
        # None: more than may be broken, and the training process says so and ends.
        return found if found is not None else self.transform(*blank()), broken


def collate(samples: list[tuple[Batch, list[Unreadable]]]) -> tuple[Batch, list[Unreadable]]:
    batches, unreadable = zip(*samples, strict=True)
    return default_collate(list(batches)), [name for names in unreadable for name in names]


@dataclass
class Whole:
    """An image for evaluation. `number` in the data set; None for one that merely fills the last turn of a process."""

    number: int | None
    image: Tensor  # as read
    labels: Tensor
    views: list[Tensor]


class ValPairs(Dataset[tuple[Whole, list[Unreadable]]]):
    """The share of one process. All have equally many turns, as a model may be spread over them; what fills the last one is not counted."""

    def __init__(self, pairs: Sequence[Pair], transform: EvalTransform, processes: int = 1, process: int = 0) -> None:
        self.pairs, self.transform, self.processes, self.process = pairs, transform, processes, process

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.processes)

    def __getitem__(self, turn: int) -> tuple[Whole, list[Unreadable]]:
        place = turn * self.processes + self.process
        number = place % len(self.pairs)
        pair = self.pairs[number]
        found, unreadable = load_or_tell(lambda: self.whole(*read_pair(pair)), lambda: str(pair.image))
        whole = found if found is not None else self.whole(*blank())
        if place < len(self.pairs) and found is not None:
            whole.number = number
        return whole, unreadable

    def whole(self, image: tv_tensors.Image, labels: tv_tensors.Mask) -> Whole:
        return Whole(None, image.as_subclass(Tensor), labels.as_subclass(Tensor), self.transform(image))


def blank() -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    image, labels = torch.zeros(3, 32, 32, dtype=torch.uint8), torch.full((32, 32), IGNORED, dtype=torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask(labels)
