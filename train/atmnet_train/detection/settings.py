"""Settings of train/coco.py. The defaults are the paper's 1x schedule; for rate and weight decay, what Swin made usual."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atmnet.dense.detection import DETECTORS
from atmnet.dense.necks import NECKS

from ..common.config import read_config
from ..common.dense import AdamWSettings, BackboneSettings, check_model, trained_values
from ..common.errors import UsageError
from ..common.loading import LoadingSettings
from ..common.runtime import EvaluationSettings, RunSettings
from ..common.settings import LARGEST_SIDE, setting
from ..common.weights import Weights

# Stochastic depth by variant.
DROP_PATH = {"atmnet_xt": 0.1, "atmnet_t": 0.1, "atmnet_s": 0.3, "atmnet_b": 0.5, "atmnet_l": 0.6}

RECIPES = {"1x": "coco-1x.yaml", "3x": "coco-3x.yaml"}
GLOBAL_BATCH = 16  # that the learning rate is for

# What an evaluation takes from the checkpoint unless it is given.
FROM_CHECKPOINT = ("model", "model_kwargs", "detector", "neck", "min_size", "max_size")


@dataclass(frozen=True)
class DetectorSettings(BackboneSettings):
    """Model and the weights that it starts from."""

    detector: str = setting("mask-rcnn", "what finds objects on the maps", choices=DETECTORS, incidental=True)
    neck: str = setting("fpn", "what makes a pyramid of the maps", choices=tuple(NECKS), incidental=True)

    @property
    def has_masks(self) -> bool:
        return self.detector != "retinanet"

    @property
    def title(self) -> str:
        return f"{self.detector} on {self.model} with {self.neck}"


@dataclass(frozen=True)
class DataSettings(LoadingSettings):
    """Data."""

    data_dir: str = setting(
        "", "DIR/SPLIT/*.jpg and DIR/annotations/instances_SPLIT.json", metavar="DIR", incidental=True, told="none: give it"
    )
    train_split: str = setting("train2017", "the images to train on", metavar="SPLIT")
    val_split: str = setting("val2017", "the images to evaluate on", metavar="SPLIT")
    keep_empty: bool = setting(False, "train on images without objects too", incidental=True)
    batch_size: int = setting(2, "per process and micro-batch", "-b", metavar="N", at_least=1, incidental=True)
    min_size: tuple[int, ...] = setting(
        (800,), "of the shorter side, drawn from these in training", metavar="N", at_least=8, told="the schedule's: 800, or 480 to 800"
    )
    max_size: int = setting(1333, "of the longer side", metavar="N", at_least=8, at_most=LARGEST_SIDE)


@dataclass(frozen=True)
class ScheduleSettings:
    """Schedule."""

    schedule: str = setting("1x", "1x: 12 epochs, 800 pixels; 3x: 36 epochs, 480 to 800 pixels", choices=tuple(RECIPES))
    epochs: int = setting(12, "passes over the images", at_least=1, told="the schedule's, 12 or 36")
    decay_epochs: tuple[float, ...] = setting(
        (8.0, 11.0),
        "after which the rate falls to a tenth",
        metavar="EPOCH",
        at_least=0,
        told="the schedule's, after the same shares of --epochs",
    )
    warmup_updates: int = setting(500, "the rate rises linearly over so many", metavar="N", at_least=0)


@dataclass(frozen=True)
class DetectorEvaluationSettings(EvaluationSettings):
    """Evaluation."""

    val_batch_size: int = setting(
        1, "per process; larger ones are padded, which changes results a little", metavar="N", at_least=1, incidental=True
    )
    pictures: int = setting(
        8, "draw the detections on the first N validation images after an evaluation", metavar="N", at_least=0, incidental=True
    )


@dataclass(frozen=True)
class Settings:
    """Settings of train/coco.py."""

    model: DetectorSettings
    data: DataSettings
    optimizer: AdamWSettings
    schedule: ScheduleSettings
    evaluation: DetectorEvaluationSettings
    run: RunSettings


def from_checkpoint(weights: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
    if "detector" not in weights.meta:
        raise UsageError(f"{weights.source} is not a detector of train/coco.py: it does not say which")
    return trained_values(weights, FROM_CHECKPOINT)


def recipe(schedule: str) -> dict[str, Any]:
    return read_config(RECIPES[schedule], "coco.py", Settings)


def by_model_and_schedule(values: Mapping[str, Any]) -> dict[str, Any]:
    name = f"{values['model']}-{values['detector']}-{values['neck']}"
    return recipe(values["schedule"]) | {"drop_path": DROP_PATH.get(values["model"]), "output": f"output/{name}"}


def derived(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that follow from others: with other `--epochs` the rate falls after the same shares of them as in the schedule."""
    usual = recipe(values["schedule"])
    return {"decay_epochs": tuple(epoch * values["epochs"] / usual["epochs"] for epoch in usual["decay_epochs"])}


def check(settings: Settings) -> None:
    """Refuses what cannot work together."""
    data = settings.data
    if not data.data_dir:
        raise UsageError(
            "give the images: --data-dir DIR with DIR/train2017/*.jpg, DIR/val2017/*.jpg and "
            "DIR/annotations/instances_{train2017,val2017}.json, as COCO is usually unpacked"
        )
    check_model(settings.model, settings.evaluation, settings.run)
    decays, epochs = settings.schedule.decay_epochs, settings.schedule.epochs
    if list(decays) != sorted(decays) or max(decays) >= epochs:
        raise UsageError(f"--decay-epochs {' '.join(map(str, decays))}: they must rise, and lie below --epochs {epochs}")
    if max(data.min_size) > data.max_size:
        raise UsageError(f"--min-size {' '.join(map(str, data.min_size))}: it must be at most --max-size {data.max_size}")
