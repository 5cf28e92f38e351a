"""Batches of clips for training and evaluation, on the device."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from atmnet.clips import ClipView
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..classification.findings import Findings, measure
from ..classification.images import Images, collate, collate_numbered
from ..classification.loaders import Evaluator
from ..common.broken import BrokenImages
from ..common.errors import RunError
from ..common.evaluation import evaluating, readable
from ..common.loading import MapLoader, loader_options
from .settings import Settings, clips_of
from .videos import ClipTransform, TrainClips, ValClips


def train_loader(videos: Images, settings: Settings, accelerator: Accelerator, mean: Any, std: Any, broken: BrokenImages) -> MapLoader:
    data, seed = settings.data, settings.run.seed
    transform = ClipTransform(clips_of(settings), data, settings.augmentation, mean, std)
    return MapLoader(TrainClips(videos.source, transform, seed, data.max_broken), collate, data, seed, accelerator, broken)


class Sum:
    """The probabilities that clips give the classes of their videos, added up."""

    def __init__(self, videos: int) -> None:
        self.videos = videos
        self.probabilities: Tensor | None = None
        self.targets = torch.full((videos,), torch.iinfo(torch.int64).max)  # of those that are yet to come

    def add(self, probabilities: Tensor, targets: Tensor, numbers: Tensor) -> None:
        if self.probabilities is None:
            self.probabilities = torch.zeros(self.videos, probabilities.shape[1])
        self.probabilities.index_add_(0, numbers.cpu(), probabilities.cpu())
        self.targets.scatter_reduce_(0, numbers.cpu(), targets.cpu(), "amin")  # a video that could not be read throughout is left out

    def findings(self, clips: int) -> Findings:
        assert self.probabilities is not None
        logits = (self.probabilities / clips).log().clamp(min=torch.finfo(torch.float32).min)
        return measure(logits, self.targets, torch.arange(self.videos)).known()


class ClipEvaluator(Evaluator):
    """Top-1, top-5 and loss of the mean that a model's probabilities have over clips and crops."""

    def _loader(self, images: Images, settings: Any, mean: Any, std: Any) -> Any:
        data, evaluation = settings.data, settings.evaluation
        self.clips = clips_of(settings)
        view = ClipView(self.clips, data.img_size, evaluation.crop_pct, data.interpolation, mean, std)
        options = loader_options(data, self.accelerator, keep_workers=False)
        batch_size = evaluation.val_batch_size or data.batch_size
        loader = DataLoader(ValClips(images.source, view), batch_size, collate_fn=collate_numbered, **options)
        return self.accelerator.prepare_data_loader(loader)

    @torch.no_grad()
    def __call__(self, models: dict[str, nn.Module], check_stop: Callable[[], None] = lambda: None) -> dict[str, dict[str, float]]:
        device, sums = self.accelerator.device, {name: Sum(self.images) for name in models}
        with evaluating(models):
            for crops, targets, numbers in readable(self.loader, self.accelerator, self.broken, check_stop):
                crops, targets, numbers = (part.to(device, non_blocking=True) for part in (crops, targets, numbers))
                for name, model in models.items():
                    with self.accelerator.autocast():
                        logits = torch.stack([model(clips) for clips in crops.unbind(1)])
                    probabilities = logits.float().softmax(2).mean(0)
                    sums[name].add(*self.accelerator.gather_for_metrics((probabilities, targets, numbers)))
        self.found = {name: found.findings(self.clips.number) for name, found in sums.items()}
        if not all(len(found.places) for found in self.found.values()):
            raise RunError(f"none of the {self.images} validation videos could be read")
        return {name: found.metrics() for name, found in self.found.items()}
