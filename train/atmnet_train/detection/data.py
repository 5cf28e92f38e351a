"""Images and targets as torchvision's detectors take them."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from atmnet.images import ImageError, describe, open_image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..common.broken import Unreadable, first_readable, load_or_tell
from ..common.sampling import SampleKey
from ..common.seeding import SAMPLE, seed_sample
from .checks import Record
from .masks import decode

Target = dict[str, Tensor]
NOTHING: Record = {"id": -1, "height": 32, "width": 32, "boxes": [], "labels": [], "names": [], "segmentations": []}


class Packed:
    """Records in one block of memory: out of a list, every worker would end up with a copy, for reading an object writes its reference
    count, and the polygons of COCO take gigabytes."""

    def __init__(self, records: Sequence[Record]) -> None:
        pieces = [pickle.dumps(record, pickle.HIGHEST_PROTOCOL) for record in records]
        self.ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
        self.block = torch.frombuffer(bytearray().join(pieces), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Record:
        start = int(self.ends[index - 1]) if index else 0
        return pickle.loads(self.block[start : int(self.ends[index])].numpy().data)


def read_image(folder: Path, record: Record) -> Tensor:
    """`[3, H, W]`, as bytes; upright, as its annotations must be."""
    image = open_image(folder / record["file_name"])
    if image.size != (record["width"], record["height"]):
        raise ImageError(
            f"it is {image.width} x {image.height} pixels, its annotations are for {record['width']} x {record['height']}: "
            "scaled, or not made for the image upright, as its EXIF orientation has it?"
        )
    return v2.functional.pil_to_tensor(image)


def make_target(record: Record, masks: bool) -> Target:
    height, width = record["height"], record["width"]
    boxes = torch.tensor(record["boxes"], dtype=torch.float32).reshape(-1, 4)
    target: Target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),  # type: ignore[call-overload]
        "labels": torch.tensor(record["labels"], dtype=torch.int64),
        "image_id": torch.tensor(record["id"]),
    }
    if masks:
        target["masks"] = tv_tensors.Mask(decode_named(record))
    return target


def decode_named(record: Record) -> Tensor:
    """The masks of a record `[N, H, W]`; what cannot be decoded is named."""
    masks = [torch.zeros(0, record["height"], record["width"], dtype=torch.uint8)]
    for name, segmentation in zip(record["names"], record["segmentations"], strict=True):
        try:
            masks.append(decode([segmentation], record["height"], record["width"]))
        except Exception as error:
            raise ImageError(f"{name}: its mask cannot be decoded ({describe(error)})") from error
    return torch.cat(masks)


class TrainImages(Dataset[tuple[Tensor, Target, list[Unreadable]]]):
    """Mirrors half of the images; in place of an unreadable one comes the next readable one."""

    def __init__(self, folder: Path, records: Sequence[Record], masks: bool, seed: int, max_broken: int) -> None:
        self.folder, self.records, self.masks, self.seed, self.max_broken = folder, Packed(records), masks, seed, max_broken
        self.transform = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.ToPureTensor()])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target, list[Unreadable]]:
        def load(index: int) -> tuple[Tensor, Target]:
            record = self.records[index]
            image, target = read_image(self.folder, record), make_target(record, self.masks)
            seed_sample(self.seed, SAMPLE, key.epoch, key.position)
            image, target = self.transform(tv_tensors.Image(image), target)
            return image, target

        found, broken = first_readable(load, self.name, key.index, len(self), self.max_broken)
        # None: more than may be broken, and the training process says so and ends.
        image, target = found if found is not None else (blank(), make_target(NOTHING, self.masks))
        return image, target, broken

    def name(self, index: int) -> str:
        return str(self.folder / self.records[index]["file_name"])


class ValImages(Dataset[tuple[Tensor, int, list[Unreadable]]]):
    """Validation images, each once, with its id; an unreadable one gets the id -1, which is not counted."""

    def __init__(self, folder: Path, records: Sequence[Record]) -> None:
        self.folder, self.records = folder, Packed(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, int, list[Unreadable]]:
        record = self.records[index]
        image, broken = load_or_tell(lambda: read_image(self.folder, record), lambda: str(self.folder / record["file_name"]))
        return (image, record["id"], broken) if image is not None else (blank(), NOTHING["id"], broken)


def blank() -> Tensor:
    return torch.zeros(3, NOTHING["height"], NOTHING["width"], dtype=torch.uint8)


def collate(samples: list[tuple[Tensor, Any, list[Unreadable]]]) -> tuple[tuple[list[Tensor], list[Any]], list[Unreadable]]:
    """Images of a batch are of different sizes: lists of them."""
    images, targets, unreadable = zip(*samples, strict=True)
    return (list(images), list(targets)), [name for names in unreadable for name in names]
