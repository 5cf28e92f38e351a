"""Settings of train/ade20k.py. The defaults are the paper's recipe for Semantic FPN, PVT's; that for UperNet, Swin's, is a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atmnet.dense.necks import NECKS
from atmnet.dense.segmentation import HEADS
from atmnet.variants import variant_of

from ..common.config import read_config
from ..common.dense import AdamWSettings, BackboneSettings, check_model, trained_values
from ..common.errors import UsageError
from ..common.loading import LoadingSettings
from ..common.runtime import EvaluationSettings, RunSettings
from ..common.settings import LARGEST_RATE, LARGEST_SIDE, setting
from ..common.weights import Weights
from .data import LAYOUT, MOST_CLASSES

# Stochastic depth by variant.
DROP_PATH = {"atmnet_xt": 0.1, "atmnet_t": 0.1, "atmnet_s": 0.2, "atmnet_b": 0.2, "atmnet_l": 0.2}

RECIPES = {"semantic-fpn": "semantic-fpn.yaml", "upernet": "upernet.yaml"}
PROCESSES = 8  # that the recipes are for

# What an evaluation takes from the checkpoint unless it is given.
FROM_CHECKPOINT = ("model", "model_kwargs", "head", "neck", "crop_size")


@dataclass(frozen=True)
class SegmenterSettings(BackboneSettings):
    """Model and the weights that it starts from."""

    head: str = setting("semantic-fpn", "what makes a segmentation of the maps", choices=HEADS, incidental=True)
    neck: str | None = setting(
        None, "of Semantic FPN; UperNet has its own pyramid", choices=tuple(NECKS), incidental=True, told="fpn; none for upernet"
    )


@dataclass(frozen=True)
class DataSettings(LoadingSettings):
    """Data."""

    data_dir: str = setting("", LAYOUT, metavar="DIR", incidental=True, told="none: give it")
    train_split: str = setting("training", "the images to train on", metavar="SPLIT")
    val_split: str = setting("validation", "the images to evaluate on", metavar="SPLIT")
    classes: str | None = setting(
        None,
        "the names of the classes, one a line",
        metavar="FILE",
        incidental=True,
        told="objectInfo150.txt or classes.txt in --data-dir, if any",
    )
    num_classes: int | None = setting(
        None, "how many there are", at_least=1, incidental=True, told="as many as are named, else the largest label in the annotations"
    )
    batch_size: int = setting(
        4, "per process and micro-batch", "-b", metavar="N", at_least=1, incidental=True, told="for 8 processes, 4; with --head upernet 2"
    )
    crop_size: int = setting(
        512, "of training; the shorter side of images in evaluation", metavar="PIXELS", at_least=2, at_most=LARGEST_SIDE
    )
    no_aug: bool = setting(False, "no random scale, mirroring or colours")


@dataclass(frozen=True)
class OptimizerSettings(AdamWSettings):
    """Optimizer."""

    lr: float = setting(2e-4, "of AdamW, whatever the batch", at_least=0, at_most=LARGEST_RATE, told="2e-4; with --head upernet 6e-5")
    weight_decay: float = setting(0.01, "not of norms and biases", at_least=0, at_most=LARGEST_RATE)


@dataclass(frozen=True)
class ScheduleSettings:
    """Schedule."""

    iterations: int = setting(40_000, "updates", metavar="N", at_least=1, told="40000; with --head upernet 160000")
    eval_interval: int = setting(4_000, "updates between evaluations", metavar="N", at_least=1, told="a tenth of --iterations")
    warmup_updates: int = setting(0, "the rate rises linearly", metavar="N", at_least=0, told="0; with --head upernet 1500")
    power: float = setting(
        0.9, "of the polynomial by which the rate falls to 0", at_least=0, at_most=LARGEST_RATE, told="0.9; with --head upernet 1"
    )


@dataclass(frozen=True)
class SegmenterEvaluationSettings(EvaluationSettings):
    """Evaluation."""

    multi_scale: bool = setting(False, "--eval: the mean over six scales from 0.5 to 1.75, each also mirrored", incidental=True)
    pictures: int = setting(
        8, "draw the predictions on the first N validation images after an evaluation", metavar="N", at_least=0, incidental=True
    )


@dataclass(frozen=True)
class Settings:
    """Settings of train/ade20k.py."""

    model: SegmenterSettings
    data: DataSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    evaluation: SegmenterEvaluationSettings
    run: RunSettings


def from_checkpoint(weights: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
    if "head" not in weights.meta:
        raise UsageError(
            f"{weights.source} is not a model of train/ade20k.py or the authors' segmentation: it does not say which head it has"
        )
    if not weights.published:
        return trained_values(weights, FROM_CHECKPOINT)
    depths = weights.meta["depths"]
    model = variant_of(depths) or given.get("model")
    if model is None:
        raise UsageError(
            f"{weights.source} holds an ATMNet of other depths than those published, {depths}: give --model and --model-kwargs"
        )
    return {"model": model, "head": weights.meta["head"]}


def recipe(head: str) -> dict[str, Any]:
    return read_config(RECIPES[head], "ade20k.py", Settings)


def by_model_and_head(values: Mapping[str, Any]) -> dict[str, Any]:
    """The head's recipe."""
    neck = {"neck": "fpn"} if values["head"] == "semantic-fpn" else {}
    return recipe(values["head"]) | neck | {"drop_path": DROP_PATH.get(values["model"])}


def derived(values: Mapping[str, Any]) -> dict[str, Any]:
    parts = filter(None, (values["model"], values["head"], values["neck"]))
    return {"eval_interval": max(1, values["iterations"] // 10), "output": "output/" + "-".join(parts)}


def check(settings: Settings) -> None:
    """Refuses what cannot work together."""
    model, data, schedule = settings.model, settings.data, settings.schedule
    if not data.data_dir:
        raise UsageError(f"give the images: --data-dir DIR with {LAYOUT}")
    check_model(model, settings.evaluation, settings.run)
    if model.head == "upernet" and model.neck:
        raise UsageError(f"--neck {model.neck}: UperNet has its own pyramid and takes no neck: leave --neck or --head upernet out")
    if data.num_classes is not None and data.num_classes > MOST_CLASSES:
        raise UsageError(
            f"--num-classes {data.num_classes}: annotations of 8 bits tell at most {MOST_CLASSES} apart, as 0 and 255 are ignored"
        )
    if settings.evaluation.eval:
        return
    if settings.evaluation.multi_scale:
        raise UsageError("--multi-scale is for --eval CKPT: it takes twelve times as long, too long for evaluations in training")
    if schedule.iterations % schedule.eval_interval:
        raise UsageError(
            f"--iterations {schedule.iterations} is no multiple of --eval-interval {schedule.eval_interval}: give another of the two"
        )
    if schedule.warmup_updates >= schedule.iterations:
        raise UsageError(f"--warmup-updates {schedule.warmup_updates} leaves nothing of --iterations {schedule.iterations}: give fewer")
