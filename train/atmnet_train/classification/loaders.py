"""Batches for training and evaluation, on the device."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AutoAugment, RandAugment
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..common.broken import BrokenImages
from ..common.errors import RunError, UsageError
from ..common.evaluation import evaluating, readable
from ..common.loading import LoadingSettings, MapLoader, TrainLoader, check_fills, images_per_update, loader_options
from ..common.seeding import WORKERS, derive_seed
from ..common.tables import Tables, read_csv
from .findings import Findings, join, measure
from .images import Batch, Images, TrainImages, ValImages, collate, collate_numbered, collate_streamed, image_name
from .pictures import draw_confusion, draw_wrong
from .settings import AugmentationSettings, DataSettings, Settings


def posterize(image: Image.Image, bits: int, **kwargs: Any) -> Image.Image:
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def patch_posterize(transform: Any) -> None:
    """timm's strongest posterize keeps no bit: an error in recent Pillow, a black image in the Pillow of the paper's time and here."""

    for policy in getattr(transform, "transforms", ()):
        groups = [policy.ops] if isinstance(policy, RandAugment) else policy.policy if isinstance(policy, AutoAugment) else []
        for op in chain.from_iterable(groups):
            if op.name.startswith("Posterize"):
                op.aug_fn = posterize


def training_transform(data: DataSettings, settings: AugmentationSettings, mean: Any, std: Any) -> Any:
    try:
        transform = create_transform(
            data.img_size,
            is_training=True,
            no_aug=settings.no_aug,
            scale=settings.scale,
            ratio=settings.ratio,
            hflip=settings.hflip,
            color_jitter=settings.color_jitter,
            auto_augment=None if settings.aa in ("", "none") else settings.aa,
            interpolation=data.interpolation,
            mean=mean,
            std=std,
            re_prob=settings.reprob,
            re_mode=settings.remode,
        )
    except (AssertionError, ValueError, KeyError) as error:  # timm reads the policy piece by piece
        raise UsageError(f"--aa {settings.aa}: timm knows no such augmentation ({error}); try rand-m9-mstd0.5-inc1, or none") from error
    patch_posterize(transform)
    return transform


def train_loader(images: Images, settings: Settings, accelerator: Accelerator, mean: Any, std: Any, broken: BrokenImages) -> TrainLoader:
    data, augmentation, seed = settings.data, settings.augmentation, settings.run.seed
    transform = training_transform(data, augmentation, mean, std)
    if images.streamed:
        return StreamLoader(images, transform, data, seed, accelerator, broken)
    dataset = TrainImages(images.source, transform, seed, data.max_broken)
    return MapLoader(dataset, collate, data, seed, accelerator, broken, repeats=augmentation.aug_repeats)


class StreamLoader:
    """Loader of a data set that is read as a stream: an epoch cannot be entered in the middle."""

    def __init__(
        self, images: Images, transform: Any, settings: LoadingSettings, seed: int, accelerator: Accelerator, broken: BrokenImages
    ) -> None:
        self.source, self.seed, self.accelerator, self.broken = images.source, seed, accelerator, broken
        self.source.transform = transform
        self.source.set_loader_cfg(num_workers=settings.workers)
        self.generator = torch.Generator()
        self.loader = DataLoader(
            self.source,
            settings.batch_size,
            drop_last=True,
            collate_fn=collate_streamed,
            generator=self.generator,
            **loader_options(settings, accelerator, keep_workers=True),
        )
        self.updates_per_epoch = len(self.loader) // settings.grad_accum_steps
        self.images_per_update = images_per_update(settings, accelerator)
        check_fills(settings, accelerator, len(images.source), self.updates_per_epoch)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        self.source.set_epoch(epoch)
        self.generator.manual_seed(derive_seed(self.seed, WORKERS, epoch))
        if start:
            self.accelerator.print(
                "a streamed data set cannot be entered in the middle: its epoch begins again for the updates that are left"
            )
        while True:  # a stream may end a little early on one process; the others must not wait for it
            for batch, unreadable in self.loader:
                self.broken.note(unreadable)
                yield send_to_device(batch, self.accelerator.device, non_blocking=True)


class InStep:
    """Loader of as many batches on every process, though their streams are not equally long: the model may be sharded.

    A process whose stream has ended gets a batch without targets.
    """

    def __init__(self, batches: DataLoader[Any], blank: Tensor, accelerator: Accelerator) -> None:
        self.batches, self.blank, self.accelerator = batches, blank, accelerator

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        source = iter(self.batches)
        while True:
            batch = next(source, None)
            more = torch.tensor(float(batch is not None), device=self.accelerator.device)
            if not self.accelerator.reduce(more, "sum").item():
                return
            yield batch if batch is not None else ((self.blank, torch.tensor([-1])), [])


class Evaluator:
    """Top-1, top-5 and loss of one or several models in one pass over the images; what it found of each is kept until the next."""

    def __init__(self, images: Images, settings: Any, accelerator: Accelerator, mean: Any, std: Any, broken: BrokenImages) -> None:
        self.accelerator, self.broken, self.images, self.streamed = accelerator, broken, len(images.source), images.streamed
        self.source, self.names = images.source, {label: name for name, label in (images.classes or {}).items()}
        self.found: dict[str, Findings] = {}  # of the last pass, by model
        self.loader = self._loader(images, settings, mean, std)

    def _loader(self, images: Images, settings: Any, mean: Any, std: Any) -> Any:
        data, evaluation, accelerator = settings.data, settings.evaluation, self.accelerator
        # "random" varies the interpolation in training; an evaluation has one.
        interpolation = "bicubic" if data.interpolation == "random" else data.interpolation
        transform = create_transform(data.img_size, interpolation=interpolation, mean=mean, std=std, crop_pct=evaluation.crop_pct)
        options = loader_options(data, accelerator, keep_workers=False)
        batch_size = evaluation.val_batch_size or data.batch_size
        if images.streamed:
            images.source.transform = transform
            images.source.set_loader_cfg(num_workers=data.workers)
            if accelerator.num_processes > 1:
                accelerator.print(
                    "validation of a streamed data set by several processes is not exact: timm cuts or repeats each one's share to equal "
                    "counts. For exact figures evaluate with one process"
                )
            stream = DataLoader(images.source, batch_size, collate_fn=collate_streamed, **options)
            return InStep(stream, torch.zeros(1, 3, data.img_size, data.img_size), accelerator)
        dataset = ValImages(images.source, transform, data.img_size)
        # Prepared by Accelerate: it shards the images, and gather_for_metrics drops the ones it repeats to fill the last batch.
        return accelerator.prepare_data_loader(DataLoader(dataset, batch_size, collate_fn=collate_numbered, **options))

    @torch.no_grad()
    def __call__(self, models: dict[str, nn.Module], check_stop: Callable[[], None] = lambda: None) -> dict[str, dict[str, float]]:
        device = self.accelerator.device
        parts: dict[str, list[Findings]] = {name: [] for name in models}
        with evaluating(models):
            for images, *about in readable(self.loader, self.accelerator, self.broken, check_stop):
                images = images.to(device, non_blocking=True)
                targets = about[0].to(device, non_blocking=True)
                numbers = about[1].to(device, non_blocking=True) if len(about) > 1 else torch.full_like(targets, -1)  # of a stream
                for name, model in models.items():
                    with self.accelerator.autocast():
                        logits = model(images).float()
                    found = measure(logits, targets, numbers)
                    if not self.streamed:
                        found = Findings(*self.accelerator.gather_for_metrics((found.figures, found.places)))
                    parts[name].append(found)
        self.found = {name: self._together(found) for name, found in parts.items()}
        return {name: found.metrics() for name, found in self.found.items()}

    def _together(self, parts: list[Findings]) -> Findings:
        """What all processes have found, the same on all of them."""
        found = join(parts).known()
        if self.streamed:  # each has its own share
            found = join([Findings(*shared) for shared in gather_object([(found.figures.cpu(), found.places.cpu())])])
        if not len(found.places):
            raise RunError(f"none of the {self.images} validation images could be read")
        return found

    def tables(self, name: str) -> Tables:
        return self.found[name].tables(self.class_name, partial(image_name, self.source))

    def class_name(self, label: int) -> str:
        return self.names.get(label, str(label))

    def draw(self, folder: Path, prefix: str) -> list[Path]:
        """Pictures of the tables in a folder, which may be those of an earlier part of the run."""
        confusion, wrong = folder / f"{prefix}confusion.png", folder / f"{prefix}wrong.png"
        pairs, worst = (read_csv(folder / f"{prefix}{name}.csv") for name in ("confusion", "wrong"))
        if pairs:
            draw_confusion(confusion, pairs)
        wrong.unlink(missing_ok=True)  # of weights that were wrong before
        if worst:
            draw_wrong(wrong, worst, self.source)
        return [path for path in (confusion, wrong) if path.is_file()]
