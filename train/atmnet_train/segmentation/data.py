"""Images and their annotations in ADE20K's layout: found, named, and all checked before anything long begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from atmnet.images import UNREADABLE
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key
from torch.utils.data import DataLoader, Dataset

from ..common.errors import UsageError
from ..common.progress import shown
from ..common.stop import worker_init
from ..common.weights import shorten

LAYOUT = "DIR/images/{training,validation}/*.jpg and DIR/annotations/{training,validation}/*.png, as ADE20K is usually unpacked"
SPLITS = {"training": ("training", "train"), "validation": ("validation", "val")}
CLASS_FILES = ("objectInfo150.txt", "classes.txt")
MOST_CLASSES = 255  # an annotation is 8-bit, and 0 is none


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
    held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    raise UsageError(f"there is no folder {folder / names[0]} ({folder} holds {shorten(held) or 'nothing'}); the data is {LAYOUT}")


def find_pairs(root: Path, split: str) -> list[Pair]:
    """Pairs every image with the annotation of the same name."""
    images = by_stem(split_folder(root / "images", split), get_img_extensions())
    annotations = by_stem(split_folder(root / "annotations", split), (".png",))
    for found, other, what in ((images, annotations, "images have no annotation"), (annotations, images, "annotations have no image")):
        alone = [str(found[stem]) for stem in found if stem not in other]
        if alone:
            raise UsageError(f"{len(alone)} {what}: {shorten(alone)}. Images and annotations belong together by name: add or remove them")
    if not images:
        raise UsageError(f"there are no images in {split_folder(root / 'images', split)}; the data is {LAYOUT}")
    return [Pair(images[stem], annotations[stem]) for stem in sorted(images, key=natural_key)]


def by_stem(folder: Path, extensions: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in folder.iterdir():
        if path.suffix.lower() in extensions:
            if path.stem in found:
                raise UsageError(f"{found[path.stem]} and {path} have one name: which belongs to {path.stem}.png cannot be told")
            found[path.stem] = path
    return found


def class_names(root: Path, given: str | None) -> list[str]:
    """Reads them from the file `given`, or from one that comes with the data; empty where there is none."""
    path = Path(given) if given else next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if path is None:
        return []
    if not path.is_file():
        raise UsageError(f"--classes {path}: there is no such file; it has one name a line, the first for label 1")
    rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if rows and "\t" in rows[0]:  # ADE20K's own: a heading, and the name in the last column
        rows = [row.rstrip("\t ").split("\t")[-1] for row in rows if row.split("\t")[0].strip().isdigit()]
    names = [row.strip() for row in rows]
    if not 0 < len(names) <= MOST_CLASSES:
        raise UsageError(f"{path} names {len(names)} classes; there can be 1 to {MOST_CLASSES}, one a line, the first for label 1")
    return names


def resolve_classes(names: list[str], num_classes: int | None, pairs: Sequence[Pair], largest: Sequence[int]) -> list[str]:
    """The names of the classes, and proof that `largest`, the largest label of each pair, is among them.

    Their number is told by the names, else by `num_classes`, else by the annotations.
    """
    if names and num_classes and len(names) != num_classes:
        raise UsageError(f"--num-classes {num_classes}, but the data names {len(names)} classes: {shorten(names)}")
    number = len(names) or num_classes or max(largest)
    if not number:
        raise UsageError(f"none of the {len(pairs)} annotations labels anything: all are 0, which is ignored")
    outside = [f"{pair.annotation} (label {label})" for pair, label in zip(pairs, largest, strict=True) if label > number]
    if outside:
        raise UsageError(
            f"{len(outside)} annotations have labels outside the {number} classes: {shorten(outside)}. "
            f"0 marks what is ignored, 1 to {number} are the classes"
        )
    return names or [f"class {label}" for label in range(1, number + 1)]


class Inspection(Dataset[tuple[int, str]]):
    """Largest label of each pair, and what is wrong with it: nothing, or a line about it."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, str]:
        pair = self.pairs[index]
        try:
            with Image.open(pair.image) as image, Image.open(pair.annotation) as annotation:
                if annotation.mode not in ("L", "P"):
                    return 0, f"{pair.annotation} is an image of mode {annotation.mode}, not of one channel of 8 bits"
                if annotation.size != image.size:
                    return 0, f"{pair.annotation} is {annotation.width} x {annotation.height}, its image {image.width} x {image.height}"
                return annotation.getextrema()[1], ""  # type: ignore[return-value]
        except UNREADABLE as error:
            return 0, f"{pair.annotation} or its image cannot be read ({error})"


def check_pairs(pairs: Sequence[Pair], workers: int, accelerator: Accelerator) -> list[int]:
    """The largest label of each pair. Reads all annotations, shared out over processes and workers, and refuses what cannot be used."""
    own = range(accelerator.process_index, len(pairs), accelerator.num_processes)
    inspection = Inspection([pairs[index] for index in own])
    loader = DataLoader(inspection, batch_size=None, num_workers=workers, worker_init_fn=worker_init())
    found = list(shown(loader, "checking annotations", accelerator.is_main_process))
    everything = dict(gather_object(list(zip(own, found, strict=True))))
    wrong = [everything[index][1] for index in range(len(pairs)) if everything[index][1]]
    if wrong:
        raise UsageError(f"{len(wrong)} of {len(pairs)} annotations cannot be used: {shorten(wrong)}")
    return [everything[index][0] for index in range(len(pairs))]
