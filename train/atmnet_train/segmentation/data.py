"""Images and their annotations in ADE20K's layout: found, named, and all checked before anything long begins."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from atmnet.images import ImageError, natural, upright_size
from atmnet.labels import nameless
from torch.utils.data import DataLoader, Dataset

from ..common.errors import UsageError
from ..common.listing import Tell, held, list_images
from ..common.progress import shown
from ..common.stop import worker_init
from ..common.weights import shorten
from .labels import read_labels

LAYOUT = "DIR/images/{training,validation}/*.jpg and DIR/annotations/{training,validation}/*.png, as ADE20K is usually unpacked"
SPLITS = {"training": ("training", "train"), "validation": ("validation", "val")}
CLASS_FILES = ("objectInfo150.txt", "classes.txt")
ADVICE = "0 is ignored: background needs a label of its own"
MOST_CLASSES = 254  # of the 256 labels that 8 bits tell apart, 0 and 255 are ignored


@dataclass(frozen=True)
class Pair:
    image: Path
    annotation: Path


def split_folder(folder: Path, split: str) -> Path:
    """The folder of a split, by any of its usual names."""
    names = next((names for names in SPLITS.values() if split in names), (split,))
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    inside = held(folder) if folder.is_dir() else "nothing"
    raise UsageError(f"there is no folder {folder / names[0]} ({folder} holds {inside}); the data is {LAYOUT}")


def find_pairs(root: Path, split: str, tell: Tell = print) -> list[Pair]:
    """Pairs every image with the annotation of the same name."""
    images = by_stem(split_folder(root / "images", split), tell)
    annotations = by_stem(split_folder(root / "annotations", split), tell, (".png",))
    for found, other, what in ((images, annotations, "images have no annotation"), (annotations, images, "annotations have no image")):
        alone = [str(found[stem]) for stem in found if stem not in other]
        if alone:
            raise UsageError(f"{len(alone)} {what}: {shorten(alone)}. Images and annotations belong together by name: add or remove them")
    if not images:
        raise UsageError(f"there are no images in {split_folder(root / 'images', split)}; the data is {LAYOUT}")
    return [Pair(images[stem], annotations[stem]) for stem in sorted(images, key=natural)]


def by_stem(folder: Path, tell: Tell, wanted: Sequence[str] | None = None) -> dict[str, Path]:
    """Files by their place below the folder, without ending."""
    found: dict[str, Path] = {}
    for path in map(Path, list_images(folder, tell, wanted)):
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in found:
            raise UsageError(f"{found[stem]} and {path} have one name: which belongs to {stem}.png cannot be told")
        found[stem] = path
    return found


def class_names(root: Path, given: str | None) -> list[str]:
    """Reads them from the file `given`, or from one that comes with the data; empty where there is none."""
    path = Path(given) if given else next((root / name for name in CLASS_FILES if os.path.lexists(root / name)), None)
    if path is None:
        return []
    if not path.is_file():
        raise UsageError(f"--classes {path}: there is no such file, or no regular one; it has one name a line, the first for label 1")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}; it has one name a line in UTF-8") from error
    rows = [line for line in text.splitlines() if line.strip()]
    if rows and "\t" in rows[0]:  # ADE20K's own: a heading, and the name in the last column
        rows = [row for row in rows if row.split("\t")[0].strip().isdecimal()]
        if [int(row.split("\t")[0]) for row in rows] != [*range(1, len(rows) + 1)]:
            raise UsageError(f"{path}: the labels in its first column are not 1, 2, 3 and so on")
        rows = [row.rstrip("\t ").split("\t")[-1] for row in rows]
    names = [row.strip() for row in rows]
    if not 0 < len(names) <= MOST_CLASSES:
        raise UsageError(f"{path} names {len(names)} classes; there can be 1 to {MOST_CLASSES}, one a line, the first for label 1")
    return names


def resolve_classes(names: list[str], num_classes: int | None, pairs: Sequence[Pair], labels: Sequence[bytes]) -> list[str]:
    """The names of the classes to train, and proof that they are those of the annotations, whose labels `check_pairs` has found.

    Their number is told by the names, else by `num_classes`, else by the annotations.
    """
    if names and num_classes and len(names) != num_classes:
        raise UsageError(f"--num-classes {num_classes}, but the data names {len(names)} classes: {shorten(names)}")
    there = check_labelled(labels)
    number = len(names) or num_classes or there[-1]
    if min(number, len(there)) < 2:
        raise UsageError(
            f"a single class, with label {there[0]}, is no segmentation: any network is right about it at once. {ADVICE}"
            if len(there) < 2
            else f"the data has the labels {shorten(list(map(str, there)))}, but a single class: give --classes or --num-classes. {ADVICE}"
        )
    missing = [label for label in range(1, there[-1]) if label not in there]
    if not names and not num_classes and 2 * len(missing) > there[-1] - 1:
        raise UsageError(
            f"the largest label is {there[-1]}, but of those before it {len(missing)} never occur: {shorten(list(map(str, missing)))}. "
            f"Labels count classes, not shades of grey; if there are so many, say so by --classes or --num-classes. {ADVICE}"
        )
    check_labels(number, pairs, labels)
    return names or nameless(number)


def untrained(classes: list[str], training: Sequence[bytes], validation: Sequence[bytes]) -> list[str]:
    """Classes that no training annotation has. Refuses splits that have none at all, or a single one to train on."""
    check_labelled(validation, "validation ")
    trained = check_labelled(training, "training ")
    if len(trained) < 2:
        raise UsageError(f"a single class to train on, {classes[trained[0] - 1]}: any network is right about it at once. {ADVICE}")
    return [name for label, name in enumerate(classes, 1) if label not in trained]


def check_labelled(labels: Sequence[bytes], which: str = "") -> list[int]:
    """Labels that there are; refuses data without any."""
    if not any(labels):
        raise UsageError(f"none of the {len(labels)} {which}annotations labels anything: all are 0 or 255, which are ignored. {ADVICE}")
    return sorted(set().union(*labels))


def check_labels(number: int, pairs: Sequence[Pair], labels: Sequence[bytes]) -> None:
    """Refuses labels of no class."""
    check_labelled(labels)
    outside = [f"{pair.annotation} (label {max(some)})" for pair, some in zip(pairs, labels, strict=True) if max(some, default=0) > number]
    if outside:
        raise UsageError(
            f"{len(outside)} annotations have labels outside the {number} classes: {shorten(outside)}. "
            f"0 and 255 mark what is ignored, 1 to {number} are the classes"
        )


class Inspection(Dataset[tuple[bytes, str]]):
    """The labels of each pair that are not ignored, in order, and what is wrong with it: nothing, or a line about it."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[bytes, str]:
        path = self.pairs[index].annotation
        try:
            labels = read_labels(path)
            path = self.pairs[index].image
            width, height = upright_size(path)
        except ImageError as error:
            return b"", f"{path}: {error}"
        if labels.shape != (height, width):
            sizes = f"is {labels.shape[1]} x {labels.shape[0]}, its image {width} x {height}"
            return b"", f"{self.pairs[index].annotation} {sizes} (each turned upright as its EXIF orientation says)"
        return bytes(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[1:]).astype(np.uint8) + 1), ""


def check_pairs(pairs: Sequence[Pair], workers: int, accelerator: Accelerator) -> list[bytes]:
    """The labels of each pair. Reads all annotations, shared out over processes and workers, and refuses what cannot be used."""
    own = range(accelerator.process_index, len(pairs), accelerator.num_processes)
    inspection = Inspection([pairs[index] for index in own])
    loader = DataLoader(inspection, batch_size=None, num_workers=workers, worker_init_fn=worker_init())
    found = list(shown(loader, "checking annotations", accelerator.is_main_process))
    everything = dict(gather_object(list(zip(own, found, strict=True))))
    wrong = [everything[index][1] for index in range(len(pairs)) if everything[index][1]]
    if wrong:
        raise UsageError(f"{len(wrong)} of {len(pairs)} annotations cannot be used: {shorten(wrong)}")
    return [everything[index][0] for index in range(len(pairs))]
