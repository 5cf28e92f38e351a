"""Labelled images for training and evaluation: finding them, checking them, reading them, batching them."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from atmnet.images import is_hidden, natural, open_image, to_rgb
from PIL import Image
from timm.data import ImageNetInfo, create_dataset
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from ..common.broken import Unreadable, first_readable, load_or_tell
from ..common.errors import UsageError
from ..common.listing import Tell, held, list_images
from ..common.sampling import SampleKey
from ..common.seeding import SAMPLE, seed_sample
from ..common.weights import shorten
from .settings import DataSettings

SPLIT_FOLDERS = {"train": ("train", "training"), "validation": ("val", "validation", "valid", "eval", "test")}
NO_DATA = (
    "give the images: --data-dir DIR with DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (ImageNet as it is usually unpacked), "
    "or --dataset NAME. No data at hand? `make demo` trains on images that come with it"
)

Batch = tuple[tuple[Tensor, Tensor], list[Unreadable]]  # images and targets (-1: unreadable), what could not be read on the way


def data_folder(settings: DataSettings) -> Path:
    if not settings.data_dir:
        raise UsageError(NO_DATA)
    return Path(settings.data_dir)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split, by any of its usual names."""
    kind = "train" if split in SPLIT_FOLDERS["train"] else "validation" if split in SPLIT_FOLDERS["validation"] else None
    names = SPLIT_FOLDERS[kind] if kind else (split,)
    if not root.is_dir():
        raise UsageError(f"--data-dir {root}: there is no such folder")
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise UsageError(f"--data-dir {root} has no folder {' or '.join(names[:3])}; it holds {held(root)}")


def class_folders(folder: Path) -> list[str]:
    try:
        names = sorted((entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)), key=natural)
    except OSError as error:
        raise UsageError(f"{folder} cannot be listed: {error}") from error
    if broken := [entry.name for entry in folder.iterdir() if entry.is_symlink() and not entry.exists()]:
        raise UsageError(f"{folder} has links that lead nowhere: {shorten(broken)}. Mount what they lead to, or remove them")
    if not names:
        raise UsageError(f"{folder} has no class folders: images go to {folder}/CLASS/*.jpg")
    return names


def class_indices(names: Sequence[str], num_classes: int | None) -> dict[str, int]:
    """Class name to index: in order, but ImageNet's own indices for a part of ImageNet under a 1000-class model."""
    if num_classes == 1000 and len(names) != 1000:
        imagenet = {name: index for index, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
        if all(name in imagenet for name in names):
            return imagenet
    return {name: index for index, name in enumerate(names)}


@dataclass
class Images:
    """A data set and what its targets mean."""

    source: Any  # of timm or torchvision; map-style or iterable
    classes: dict[str, int] | None  # None: the data set does not name them

    @property
    def distinct(self) -> float:
        """Number of classes that there are images of; infinite where only reading all would tell."""
        if isinstance(self.source, Folder):
            return len({target for _, target in self.source.samples})
        return len(self.classes) if self.classes else math.inf

    @property
    def streamed(self) -> bool:
        return isinstance(self.source, IterableDataset)


class Folder(Dataset[tuple[Image.Image, int]]):
    """The images below `root`, labelled by the first folder on their way: what lies deeper belongs to it too."""

    noun = "images"
    reads = "Pillow"
    wanted: Iterable[str] | None = None  # endings; None: of images

    def __init__(self, root: Path, classes: dict[str, int], tell: Tell = print) -> None:
        self.root, start = os.fspath(root), len(os.fspath(root)) + 1
        files = list_images(root, tell, self.wanted)
        self.samples = [(file, classes[name]) for file in files for name in [file[start:].split(os.sep, 1)[0]] if name in classes]
        if loose := len(files) - len(self.samples):
            tell(f"{root}: passed over {loose} {self.noun} that lie in no class folder")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, target = self.samples[index]
        return open_image(file), target


def open_folder(folder: Path, classes: dict[str, int], tell: Tell = print, kind: type[Folder] = Folder) -> Images:
    """Opens a folder, every class of which must be known and hold images."""
    names = class_folders(folder)
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UsageError(f"{folder} has {len(unknown)} classes that training does not know: {shorten(unknown)}")
    source = kind(folder, classes, tell)
    filled = {target for _, target in source.samples}
    empty = [name for name in names if classes[name] not in filled]
    if empty:
        raise UsageError(
            f"{len(empty)} class folders of {folder} hold no {kind.noun} that {kind.reads} reads: {shorten(empty)}. Fill or remove them"
        )
    return Images(source, classes)


def open_split(settings: DataSettings, seed: int, split: str, classes: dict[str, int] | None, training: bool, tell: Tell = print) -> Images:
    """The images of one split. `classes`: known already, from the training split or the checkpoint."""
    if not settings.dataset:
        folder = split_folder(data_folder(settings), split)
        return open_folder(folder, classes or class_indices(class_folders(folder), settings.num_classes), tell)
    try:
        source = create_dataset(
            settings.dataset,
            root=settings.data_dir,
            split=split,
            is_training=training,
            download=settings.dataset_download,
            batch_size=settings.batch_size,
            seed=seed,
            input_key=settings.input_key,
            target_key=settings.target_key,
        )
    except Exception as error:  # whatever the library behind the name raises
        raise UsageError(f"--dataset {settings.dataset}, split {split}: {type(error).__name__}: {error}") from error
    found = getattr(getattr(source, "reader", source), "class_to_idx", None)
    return Images(source, dict(found) if found else None)


def read_image(source: Any, index: int) -> tuple[Image.Image, int]:
    if hasattr(source, "reader"):  # timm would go on to the next image by itself, without telling which could not be read
        file, target, *_ = source.reader[index]
        with file:
            return open_image(file), target
    image, target = source[index]
    return to_rgb(image), target


def image_name(source: Any, index: int) -> str:
    if isinstance(source, Folder):
        return source.samples[index][0]
    try:
        return str(source.reader.filename(index, absolute=True))
    except Exception:
        return f"image number {index}"


def sample_names(source: Any) -> list[str]:
    """Names by which to tell whether a data set is still the same, from its root on; none of one that has no files."""
    reader = getattr(source, "reader", source)
    if hasattr(reader, "filenames") and hasattr(reader, "samples"):  # other readers would load every image for it
        return [str(name) for name in reader.filenames()]
    if hasattr(reader, "samples") and hasattr(reader, "root"):  # torchvision's folders
        return [os.path.relpath(path, reader.root) for path, _ in reader.samples]
    return [str(getattr(getattr(reader, "dataset", None), "_fingerprint", ""))]  # of Hugging Face's


def check_classes(images: Images, num_classes: int, owner: str) -> None:
    if images.classes and max(images.classes.values()) >= num_classes:
        raise UsageError(f"the data has {len(images.classes)} classes ({shorten(list(images.classes))}), {owner} only {num_classes}")


class TrainImages(Dataset[tuple[Tensor, int, list[Unreadable]]]):
    """Augments each sample with random numbers of its own; in place of an unreadable image comes the next readable one."""

    def __init__(self, source: Any, transform: Any, seed: int, max_broken: int) -> None:
        self.source, self.transform, self.seed, self.max_broken = source, transform, seed, max_broken

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, int, list[Unreadable]]:
        def load(index: int) -> tuple[Tensor, int]:
            sample, target = self.read(index)
            seed_sample(self.seed, SAMPLE, key.epoch, key.position)
            return self.transform(sample), target

        found, broken = first_readable(load, partial(image_name, self.source), key.index, len(self), self.max_broken)
        # None: more than may be broken, and the training process says so and ends.
        image, target = found if found is not None else (self.blank(), -1)
        return image, target, broken

    def read(self, index: int) -> tuple[Any, int]:
        """What the transform is given, and its target."""
        return read_image(self.source, index)

    def blank(self) -> Tensor:
        sample: Tensor = self.transform(Image.new("RGB", (1, 1)))
        return sample


class ValImages(Dataset[tuple[Tensor, int, list[Unreadable], int]]):
    """Validation images, each once, with its number; an unreadable one gets the target -1, which is not counted."""

    def __init__(self, source: Any, transform: Any, img_size: int) -> None:
        self.source, self.transform, self.img_size = source, transform, img_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int, list[Unreadable], int]:
        def load() -> tuple[Tensor, int]:
            image, target = read_image(self.source, index)
            return self.transform(image), target

        found, broken = load_or_tell(load, partial(image_name, self.source, index))
        image, target = found if found is not None else (torch.zeros(3, self.img_size, self.img_size), -1)
        return image, target, broken, index


def collate(samples: list[tuple[Tensor, int, list[Unreadable]]]) -> Batch:
    images, targets = default_collate([sample[:2] for sample in samples])
    return (images, targets), [name for sample in samples for name in sample[2]]


def collate_numbered(samples: list[tuple[Tensor, int, list[Unreadable], int]]) -> Any:
    (images, targets), unreadable = collate([sample[:3] for sample in samples])
    return (images, targets, torch.tensor([sample[3] for sample in samples])), unreadable


def collate_streamed(samples: list[tuple[Tensor, int]]) -> Batch:
    images, targets = default_collate(samples)
    return (images, targets), []
