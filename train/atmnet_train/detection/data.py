"""Images and targets as torchvision's detectors take them."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from atmnet.images import UNREADABLE
from einops import rearrange
from faster_coco_eval.core import mask as rle
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..common.broken import Unreadable
from ..common.sampling import SampleKey
from ..common.seeding import SAMPLE, seed_sample
from .annotations import Record

Target = dict[str, Tensor]
NOTHING: Record = {"id": -1, "height": 32, "width": 32, "boxes": [], "labels": [], "segmentations": []}


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
    """`[3, H, W]`, as bytes."""
    with Image.open(folder / record["file_name"]) as file:
        image = file.convert("RGB")
    if image.size != (record["width"], record["height"]):
        raise ValueError(
            f"it is {image.width} x {image.height} pixels, its annotations are for {record['width']} x {record['height']}: "
            "scaled, or turned by its EXIF orientation?"
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
        target["masks"] = tv_tensors.Mask(decode(record["segmentations"], height, width))
    return target


def decode(segmentations: Sequence[Any], height: int, width: int) -> Tensor:
    """Polygons or run lengths to masks `[N, H, W]`."""
    whole = [rle.merge(rle.frPyObjects(s, height, width)) if isinstance(s, list) else compressed(s) for s in segmentations]
    if not whole:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    return torch.from_numpy(rearrange(rle.decode(whole), "h w n -> n h w").copy())


def compressed(segmentation: Record) -> Record:
    """Run lengths come as a list of numbers or, compressed, as text."""
    counts = segmentation["counts"]
    return rle.frPyObjects(segmentation, *segmentation["size"]) if isinstance(counts, list) else segmentation  # type: ignore[return-value]


def encode(masks: Tensor) -> list[Record]:
    """Masks `[N, H, W]` to compressed run lengths as they stand in JSON."""
    planes = np.asfortranarray(rearrange(masks, "n h w -> h w n").to(torch.uint8).numpy())
    return [{"size": piece["size"], "counts": piece["counts"].decode()} for piece in rle.encode(planes)]  # type: ignore[union-attr]


class TrainImages(Dataset[tuple[Tensor, Target, list[Unreadable]]]):
    """Mirrors half of the images; in place of an unreadable one comes the next readable one."""

    def __init__(self, folder: Path, records: Sequence[Record], masks: bool, seed: int, max_broken: int) -> None:
        self.folder, self.records, self.masks, self.seed, self.max_broken = folder, Packed(records), masks, seed, max_broken
        self.transform = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.ToPureTensor()])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target, list[Unreadable]]:
        broken: list[Unreadable] = []
        for offset in range(min(self.max_broken + 1, len(self))):
            record = self.records[(key.index + offset) % len(self)]
            try:
                image = read_image(self.folder, record)
            except UNREADABLE as error:
                broken.append((str(self.folder / record["file_name"]), str(error)))
                continue
            seed_sample(self.seed, SAMPLE, key.epoch, key.position)
            image, target = self.transform(tv_tensors.Image(image), make_target(record, self.masks))
            return image, target, broken
        return blank(), make_target(NOTHING, self.masks), broken  # more than may be broken: the training process says so and ends


class ValImages(Dataset[tuple[Tensor, int, list[Unreadable]]]):
    """Validation images, each once, with its id; an unreadable one gets the id -1, which is not counted."""

    def __init__(self, folder: Path, records: Sequence[Record]) -> None:
        self.folder, self.records = folder, Packed(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, int, list[Unreadable]]:
        record = self.records[index]
        try:
            return read_image(self.folder, record), record["id"], []
        except UNREADABLE as error:
            return blank(), NOTHING["id"], [(str(self.folder / record["file_name"]), str(error))]


def blank() -> Tensor:
    return torch.zeros(3, NOTHING["height"], NOTHING["width"], dtype=torch.uint8)


def collate(samples: list[tuple[Tensor, Any, list[Unreadable]]]) -> tuple[tuple[list[Tensor], list[Any]], list[Unreadable]]:
    """Images of a batch are of different sizes: lists of them."""
    images, targets, unreadable = zip(*samples, strict=True)
    return (list(images), list(targets)), [name for names in unreadable for name in names]
