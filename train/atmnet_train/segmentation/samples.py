"""Datasets: augmented samples for training, whole images for evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from atmnet.images import UNREADABLE
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

from ..common.broken import Unreadable
from ..common.sampling import SampleKey
from ..common.seeding import SAMPLE, seed_sample
from .data import Pair
from .transforms import IGNORED, EvalTransform

Batch = tuple[Tensor, Tensor]


def read_pair(pair: Pair) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Image `[3, H, W]` and labels `[H, W]`, both of bytes; the labels from 0 on, and `IGNORED`."""
    with Image.open(pair.image) as file:
        image = pil_to_tensor(file.convert("RGB"))
    with Image.open(pair.annotation) as file:
        labels = pil_to_tensor(file)[0] - 1  # bytes wrap round: 0, which is ignored, becomes 255
    return tv_tensors.Image(image), tv_tensors.Mask(labels)


class TrainPairs(Dataset[tuple[Batch, list[Unreadable]]]):
    """Augments each sample with random numbers of its own; in place of an unreadable image comes the next readable one."""

    def __init__(self, pairs: Sequence[Pair], transform: Callable[[Tensor, Tensor], Batch], seed: int, max_broken: int) -> None:
        self.pairs, self.transform, self.seed, self.max_broken = pairs, transform, seed, max_broken

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: SampleKey) -> tuple[Batch, list[Unreadable]]:
        broken: list[Unreadable] = []
        for offset in range(min(self.max_broken + 1, len(self))):
            pair = self.pairs[(key.index + offset) % len(self)]
            try:
                image, labels = read_pair(pair)
            except UNREADABLE as error:
                broken.append((str(pair.image), str(error)))
                continue
            seed_sample(self.seed, SAMPLE, key.epoch, key.position)
            return self.transform(image, labels), broken
        return self.transform(*blank()), broken  # more than may be broken: the training process says so and ends


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
        number, unreadable = place % len(self.pairs), list[Unreadable]()
        try:
            image, labels = read_pair(self.pairs[number])
        except UNREADABLE as error:
            image, labels = blank()
            unreadable = [(str(self.pairs[number].image), str(error))]
        counts = place < len(self.pairs) and not unreadable
        views = self.transform(image)
        return Whole(number if counts else None, image.as_subclass(Tensor), labels.as_subclass(Tensor), views), unreadable


def blank() -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    image, labels = torch.zeros(3, 32, 32, dtype=torch.uint8), torch.full((32, 32), IGNORED, dtype=torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask(labels)
