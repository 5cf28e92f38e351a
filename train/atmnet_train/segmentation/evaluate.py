"""Evaluation on whole images: one confusion matrix over all processes, and what is read off it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from atmnet.predicting.segmenting import segment
from atmnet.predicting.views import ONE_SCALE, SCALES, EvalTransform
from torch import Tensor
from torch.utils.data import DataLoader

from ..common.broken import BrokenImages
from ..common.engine import Metrics, Models
from ..common.errors import RunError
from ..common.evaluation import evaluating, readable
from ..common.loading import loader_options
from ..common.tables import CLASSES, Tables
from .data import Pair
from .pictures import draw_picture
from .samples import ValPairs, Whole
from .settings import Settings
from .transforms import IGNORED


def confusion_matrix(labels: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """Pixels `[true, predicted]`, the ignored ones left out."""
    known = labels != IGNORED
    return (labels[known].long() * num_classes + prediction[known]).bincount(minlength=num_classes**2).view(num_classes, num_classes)


def class_scores(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and accuracy of each class in percent; NaN for a class that is nowhere."""
    hits, true, predicted = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
    return 100 * hits / (true + predicted - hits), 100 * hits / true


METRICS = ("mIoU", "mAcc", "aAcc")


def scores(confusion: Tensor) -> Metrics:
    """Metrics in percent, as papers report: means over the classes that there are, and the share of all pixels."""
    iou, accuracy = class_scores(confusion)
    overall = 100 * confusion.diagonal().sum().double() / confusion.sum()
    return dict(zip(METRICS, (iou.nanmean().item(), accuracy.nanmean().item(), overall.item()), strict=True))


class Evaluator:
    """Scores one or several models in one pass over the images. The pictures are of the last pass.

    With `multi_scale`, at six scales and mirrored.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        settings: Settings,
        accelerator: Accelerator,
        broken: BrokenImages,
        multi_scale: bool = False,
    ) -> None:
        self.pairs, self.classes, self.accelerator, self.broken, self.multi_scale = pairs, classes, accelerator, broken, multi_scale
        self.found: dict[str, Tensor] = {}  # confusions of the last pass, by model
        self.pictures, self.folder = settings.evaluation.pictures, Path(settings.run.output) / "pictures"
        transform = EvalTransform(settings.data.crop_size, mean, std, SCALES if multi_scale else ONE_SCALE)
        share = ValPairs(pairs, transform, accelerator.num_processes, accelerator.process_index)
        self.loader: Any = DataLoader(share, batch_size=None, **loader_options(settings.data, accelerator, keep_workers=False))

    @torch.no_grad()
    def __call__(self, models: Models, check_stop: Callable[[], None] = lambda: None) -> dict[str, Metrics]:
        number, device = len(self.classes), self.accelerator.device
        sums = {name: torch.zeros(number, number, dtype=torch.int64, device=device) for name in models}
        with evaluating(models):
            for whole in readable(self.loader, self.accelerator, self.broken, check_stop):
                labels = whole.labels.to(device, non_blocking=True)
                views = [view.to(device, non_blocking=True) for view in whole.views]
                for name, model in models.items():
                    with self.accelerator.autocast():
                        prediction, _ = segment(model, views, labels.shape, self.multi_scale)
                    if whole.number is not None:
                        sums[name] += confusion_matrix(labels, prediction, number)
                        self._draw(name, whole, prediction)
        self.found = {name: self.accelerator.reduce(confusion, "sum").cpu() for name, confusion in sums.items()}
        if not all(confusion.any() for confusion in self.found.values()):
            raise RunError(f"none of the {len(self.pairs)} validation images has a labelled pixel that could be read: there is no mIoU")
        return {name: scores(confusion) for name, confusion in self.found.items()}

    def tables(self, name: str) -> Tables:
        return {CLASSES: class_table(self.found[name], self.classes)}

    def draw(self, folder: Path, prefix: str) -> list[Path]:
        """The pictures, which are drawn while images are looked at."""
        drawn = [self.folder / f"{pair.image.stem}.png" for pair in self.pairs[: self.pictures]]
        return [path for path in drawn if path.is_file()]

    def _draw(self, name: str, whole: Whole, prediction: Tensor) -> None:
        """The first images, each by the process that has it."""
        if whole.number is not None and whole.number < self.pictures:
            path = self.folder / f"{name}{self.pairs[whole.number].image.stem}.png"
            draw_picture(path, whole.image, whole.labels, prediction.cpu(), self.classes)


def class_table(confusion: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class; None where there is nothing to divide by."""
    columns = {"IoU": class_scores(confusion)[0], "Acc": class_scores(confusion)[1]}
    figures = [{name: None if math.isnan(x := column[i].item()) else x for name, column in columns.items()} for i in range(len(classes))]
    pixels = confusion.sum(1).tolist()
    return [{"label": i + 1, "class": name, **figures[i], "pixels": pixels[i]} for i, name in enumerate(classes)]
