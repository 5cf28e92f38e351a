"""Settings of train/imagenet.py, in timm's spelling. The defaults are the paper's recipe (its table 9; where it is silent, DeiT's)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atmnet import canonical_name
from atmnet.variants import MODEL_NAMES

from ..common.config import read_config
from ..common.errors import UsageError
from ..common.loading import LoadingSettings
from ..common.runtime import EvaluationSettings, RunSettings
from ..common.settings import BELOW_1, LARGEST_RATE, LARGEST_SIDE, setting
from ..common.weights import Weights

# Stochastic depth by variant, of images or videos.
DROP_PATH = {"atmnet_xt": 0.1, "atmnet_t": 0.1, "atmnet_s": 0.2, "atmnet_b": 0.3, "atmnet_l": 0.3}

# timm's auto-augment policies: what it cannot read of one, it passes over.
POLICY = re.compile(
    r"rand(-m\d\d?|-mmax\d\d?|-n[1-9]\d?|-p(0?\.\d+|1)|-inc[01]|-t[a-z0-9]+|-mstd\d+(\.\d+)?)*"
    r"|augmix(-m\d\d?|-[wd][1-9]|-a(\d*\.)?\d+|-b[01]|-mstd\d+(\.\d+)?)*"
    r"|(originalr?|v0r?|3a)(-mstd\d+(\.\d+)?)?"
)

DATASETS = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")

# What an evaluation takes from the checkpoint unless it is given.
FROM_CHECKPOINT = ("img_size", "crop_pct", "interpolation", "model_kwargs", "swap")


@dataclass(frozen=True)
class NetworkSettings:
    """Model and the weights that it starts from."""

    model: str = setting(
        "atmnet_t",
        MODEL_NAMES,
        read=canonical_name,
        incidental=True,
        told="atmnet-t; with --eval, the checkpoint's",
    )
    model_kwargs: tuple[str, ...] = setting((), "passed on to timm.create_model", metavar="KEY=VALUE")
    drop_path: float | None = setting(
        None, "stochastic depth", share=True, at_most=BELOW_1, told="the variant's, 0.1 to 0.3; timm's for other models"
    )
    init_from: str | None = setting(
        None, "start from these weights; a classifier of another size is replaced", metavar="CKPT", incidental=True, told="new weights"
    )
    ema: bool | None = setting(
        None,
        "--eval, --init-from: take the averaged weights of the checkpoint",
        incidental=True,
        told="of a published file, as the paper evaluates, on with --eval; else off",
    )


@dataclass(frozen=True)
class ModelSettings(NetworkSettings):
    """Model and the weights that it starts from."""

    swap: str | None = setting(
        None,
        "modules that become mixers, by a pattern of their names (atm_triton.swap), after --init-from",
        metavar="PATTERN",
        told="none; with --eval, the checkpoint's",
    )
    finetune: bool = setting(False, "preset for --init-from: 384 pixels, 30 epochs at 5e-6")


@dataclass(frozen=True)
class DataSettings(LoadingSettings):
    """Data."""

    data_dir: str | None = setting(
        None,
        "DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or where --dataset keeps its files",
        metavar="DIR",
        incidental=True,
        told="none: give it, or --dataset",
    )
    dataset: str = setting("", "a timm dataset: hfds/..., hfids/..., wds/..., tfds/..., torch/...", metavar="NAME", told="folders")
    train_split: str = setting("train", "the images to train on", metavar="SPLIT")
    val_split: str = setting("validation", "the images to evaluate on", metavar="SPLIT")
    dataset_download: bool = setting(False, "let the dataset download itself", incidental=True)
    input_key: str | None = setting(None, "the image column of --dataset", told="timm's")
    target_key: str | None = setting(None, "the label column of --dataset", told="timm's")
    num_classes: int | None = setting(None, "outputs of the classifier", at_least=1, told="from the data")
    img_size: int = setting(
        224, "pixels of a side", at_least=8, at_most=LARGEST_SIDE, told="224; with --finetune 384; with --eval, the checkpoint's"
    )
    interpolation: str = setting("bicubic", "how images are resized", choices=("bicubic", "bilinear", "nearest", "random"))


@dataclass(frozen=True)
class MixingSettings:
    """Augmentation and regularisation."""

    scale: tuple[float, float] = setting((0.08, 1.0), "area of the random crop", at_least=0.001)
    ratio: tuple[float, float] = setting((3 / 4, 4 / 3), "aspect ratio of the random crop", at_least=0.01, at_most=100)
    hflip: float = setting(0.5, "share of mirrored images", share=True)
    color_jitter: float = setting(0.4, "brightness, contrast and saturation change by up to this", share=True)
    mixup: float = setting(0.8, "alpha of mixup; 0 switches it off", at_least=0)
    cutmix: float = setting(1.0, "alpha of cutmix; 0 switches it off", at_least=0)
    mixup_prob: float = setting(1.0, "share of mixed batches", share=True)
    mixup_switch_prob: float = setting(0.5, "share of cutmix where both are on", share=True)
    mixup_off_epoch: int = setting(0, "stop mixing at this epoch (0: never)", at_least=0)
    smoothing: float = setting(0.1, "label smoothing", share=True, at_most=BELOW_1)


@dataclass(frozen=True)
class AugmentationSettings(MixingSettings):
    """Augmentation and regularisation."""

    no_aug: bool = setting(False, "no random transforms")
    aa: str = setting("rand-m9-mstd0.5-inc1", "auto-augment policy; none switches it off")
    color_jitter: float = setting(0.4, "takes effect with --aa none, as in timm", share=True)
    aug_repeats: int = setting(3, "repeated augmentation; 0 or 1 switches it off", at_least=0, at_most=1000, incidental=True)
    reprob: float = setting(0.25, "share of randomly erased images", share=True)
    remode: str = setting("pixel", "what is erased becomes this", choices=("pixel", "rand", "const"))


@dataclass(frozen=True)
class DistillationSettings:
    """Distillation."""

    teacher: str | None = setting(
        None,
        "learn this model's answers in place of the labels: a checkpoint, or a timm model, whose pretrained weights are downloaded",
        metavar="CKPT|NAME",
        incidental=True,
        told="none: the labels",
    )
    temperature: float = setting(2.0, "divides the logits of teacher and model", at_least=0.01)


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer."""

    opt: str = setting("adamw", "any of timm's optimizers")
    lr: float | None = setting(
        None, "learning rate", at_least=0, at_most=LARGEST_RATE, told="--lr-base times global batch over --lr-base-size"
    )
    lr_base: float = setting(1e-3, "learning rate at a global batch of --lr-base-size", at_least=0, at_most=LARGEST_RATE)
    lr_base_size: int = setting(1024, "the global batch that --lr-base is for", at_least=1)
    weight_decay: float = setting(0.05, "not of norms and biases", at_least=0, at_most=LARGEST_RATE)
    momentum: float = setting(0.9, "of optimizers that have one", share=True, at_most=BELOW_1)
    layer_decay: float | None = setting(None, "layer-wise decay of the learning rate", share=True, at_least=0.01, told="none")
    clip_grad: float | None = setting(None, "clip the gradient norm (0: never)", metavar="NORM", at_least=0, told="never")
    model_ema_decay: float = setting(0.99996, "of the averaged weights; 0 switches them off", share=True, at_most=0.999999)
    model_ema_warmup: bool = setting(False, "average over the steps there are at first: for runs of few updates")


@dataclass(frozen=True)
class ScheduleSettings:
    """Schedule."""

    sched: str = setting("cosine", "how the learning rate falls", choices=("cosine", "poly", "tanh", "step"))
    sched_on_updates: bool = setting(False, "follow the schedule at every update rather than epoch")
    epochs: int = setting(300, "without --cooldown-epochs", at_least=1, told="300; with --finetune 30")
    warmup_epochs: int = setting(5, "the rate rises linearly from --warmup-lr", at_least=0, told="5; with --finetune 0")
    cooldown_epochs: int = setting(0, "at --min-lr, after --epochs", at_least=0)
    min_lr: float = setting(1e-5, "where the schedule ends", at_least=0, at_most=LARGEST_RATE, told="1e-5; with --finetune 5e-6")
    warmup_lr: float = setting(1e-6, "where the warm-up begins", at_least=0, at_most=LARGEST_RATE)
    decay_epochs: float = setting(90.0, "of --sched step", at_least=1)
    decay_rate: float = setting(0.1, "of --sched step; the power of poly", at_least=0, at_most=LARGEST_RATE)


@dataclass(frozen=True)
class ClassifierEvaluationSettings(EvaluationSettings):
    """Evaluation."""

    val_batch_size: int | None = setting(None, "per process", metavar="N", at_least=1, incidental=True, told="--batch-size")
    crop_pct: float = setting(224 / 256, "evaluation crop", share=True, at_least=0.01, told="0.875; with --eval, the checkpoint's")


@dataclass(frozen=True)
class Settings:
    """Settings of train/imagenet.py."""

    model: ModelSettings
    data: DataSettings
    augmentation: AugmentationSettings
    distillation: DistillationSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    evaluation: ClassifierEvaluationSettings
    run: RunSettings


def from_checkpoint(weights: Weights, given: Mapping[str, Any], names: Sequence[str] = FROM_CHECKPOINT) -> dict[str, Any]:
    """Takes for `--eval` from its checkpoint which model it is, and how its images are seen."""
    held = weights.meta.get("model")
    name = given.get("model", canonical_name(held or ""))
    if not name:
        raise UsageError(f"{weights.source} does not say which model it is: give --model")
    if held not in (None, name):
        raise UsageError(f"{weights.source} holds {held}, not --model {name}")
    trained = weights.meta | weights.meta.get("recipe", {})
    found = {key: trained[key] for key in names if key in trained}
    found |= {"model": name, "ema": weights.averaged}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def of_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that depend on the model."""
    return {"output": f"output/{values['model']}", "drop_path": DROP_PATH.get(values["model"].removesuffix("_video"))}


def dependent(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that depend on the model, or on fine-tuning."""
    return of_model(values) | (read_config("imagenet-384.yaml", "imagenet.py", Settings) if values["finetune"] else {})


def check(settings: Settings) -> None:
    """Refuses what cannot work together."""
    model, data, augmentation = settings.model, settings.data, settings.augmentation
    if model.finetune and not model.init_from:
        raise UsageError("--finetune starts from trained weights: give --init-from CKPT")
    if settings.evaluation.eval:
        if settings.run.resume or model.init_from:
            raise UsageError("--eval CKPT names the weights itself: leave --resume and --init-from out")
        return
    if data.dataset and not data.dataset.lower().startswith(DATASETS):  # which timm takes for folders
        raise UsageError(f"--dataset {data.dataset}: it must begin with {', '.join(DATASETS)}")
    if (data.input_key or data.target_key) and not data.dataset:
        raise UsageError("--input-key and --target-key name columns of a data set: give --dataset, or leave them out")
    if augmentation.aa not in ("", "none") and not POLICY.fullmatch(augmentation.aa):
        raise UsageError(f"--aa {augmentation.aa}: timm knows no such augmentation; try rand-m9-mstd0.5-inc1, or none")
    check_recipe(augmentation, data.batch_size, settings.schedule)


def check_recipe(augmentation: MixingSettings, batch_size: int, schedule: ScheduleSettings, small: str = "small.yaml") -> None:
    """Refuses a recipe that cannot be; `small` is the one for little data."""
    for name, (low, high), most in (("scale", augmentation.scale, 1), ("ratio", augmentation.ratio, math.inf)):
        if not 0 < low <= high <= most:
            raise UsageError(f"--{name} {low} {high}: give the smallest first, above 0" + " and up to 1" * (most == 1))
    if (augmentation.mixup > 0 or augmentation.cutmix > 0) and batch_size % 2:
        raise UsageError(f"--batch-size {batch_size}: mixup pairs the images of a batch, so it must be even (or --mixup 0 --cutmix 0)")
    if schedule.warmup_epochs >= schedule.epochs:
        raise UsageError(
            f"--warmup-epochs {schedule.warmup_epochs} leaves nothing of --epochs {schedule.epochs}: give fewer warm-up epochs, or, for "
            f"some thousand samples, --config {small}"
        )
