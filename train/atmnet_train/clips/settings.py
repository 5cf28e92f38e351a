"""Settings of train/video.py: those of train/imagenet.py as far as they suit clips."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atmnet import canonical_name
from atmnet.clips import CROPS, SAMPLINGS, Clips

from ..classification.settings import (
    ClassifierEvaluationSettings,
    MixingSettings,
    NetworkSettings,
    OptimizerSettings,
    ScheduleSettings,
    check_recipe,
    from_checkpoint,
)
from ..common.errors import UsageError
from ..common.loading import LoadingSettings
from ..common.runtime import RunSettings
from ..common.settings import LARGEST_RATE, LARGEST_SIDE, setting
from ..common.weights import Weights

# What an evaluation takes from the checkpoint unless it is given.
FROM_CHECKPOINT = ("img_size", "crop_pct", "interpolation", "model_kwargs", "frames", "sampling", "frame_stride", "clips", "crops")

MOST_FRAMES = 4096  # more are a slip of the finger


@dataclass(frozen=True)
class VideoModelSettings(NetworkSettings):
    """Model and the weights that it starts from."""

    model: str = setting(
        "atmnet_t_video",
        "a network of videos: atmnet-xt-video, -t-, -s-, -b- or -l-video",
        read=canonical_name,
        incidental=True,
        told="atmnet-t-video; with --eval, the checkpoint's",
    )
    init_from: str | None = setting(
        None,
        "start from these weights, of videos or of images; a classifier of another size is replaced",
        metavar="CKPT",
        incidental=True,
        told="new weights",
    )


@dataclass(frozen=True)
class VideoDataSettings(LoadingSettings):
    """Data."""

    data_dir: str | None = setting(
        None,
        "DIR/train/CLASS/*.mp4 and DIR/val/CLASS/*.mp4, or where the lists' videos are",
        metavar="DIR",
        incidental=True,
        told="none: give it",
    )
    train_list: str | None = setting(
        None,
        "the videos to train on, as lines of path and label under the heading path,label",
        metavar="CSV",
        incidental=True,
        told="folders",
    )
    val_list: str | None = setting(None, "the videos to evaluate on", metavar="CSV", incidental=True, told="folders")
    train_split: str = setting("train", "the folder to train on", metavar="SPLIT")
    val_split: str = setting("validation", "the folder to evaluate on", metavar="SPLIT")
    num_classes: int | None = setting(None, "outputs of the classifier", at_least=1, told="from the data")
    frames: int = setting(16, "of a clip", at_least=1, at_most=MOST_FRAMES, told="16; with --eval, the checkpoint's")
    sampling: str = setting(
        "uniform",
        "clips of frames from all over a video, or of successive ones",
        choices=SAMPLINGS,
        told="uniform; with --eval, the checkpoint's",
    )
    frame_stride: int = setting(
        2, "of dense clips, from one frame to the next", at_least=1, at_most=MOST_FRAMES, told="2; with --eval, the checkpoint's"
    )
    img_size: int = setting(224, "pixels of a side", at_least=8, at_most=LARGEST_SIDE, told="224; with --eval, the checkpoint's")
    interpolation: str = setting("bicubic", "how frames are resized", choices=("bicubic", "bilinear", "nearest"))
    batch_size: int = setting(8, "clips per process and micro-batch", "-b", metavar="N", at_least=1, incidental=True)
    max_broken: int = setting(50, "unreadable videos to skip before giving up", metavar="N", at_least=0, incidental=True)


@dataclass(frozen=True)
class VideoAugmentationSettings(MixingSettings):
    """Augmentation and regularisation, of all frames of a clip alike."""

    hflip: float = setting(0.5, "share of mirrored clips; 0 where left and right are told apart", share=True)


@dataclass(frozen=True)
class VideoOptimizerSettings(OptimizerSettings):
    """Optimizer."""

    lr_base: float = setting(5e-4, "learning rate at a global batch of --lr-base-size", at_least=0, at_most=LARGEST_RATE)
    lr_base_size: int = setting(64, "the global batch that --lr-base is for", at_least=1)
    model_ema_decay: float = setting(0.9999, "of the averaged weights; 0 switches them off", share=True, at_most=0.999999)
    model_ema_warmup: bool = setting(True, "average over the steps there are at first: for runs of few updates")


@dataclass(frozen=True)
class VideoScheduleSettings(ScheduleSettings):
    """Schedule."""

    epochs: int = setting(30, "without --cooldown-epochs", at_least=1)
    warmup_epochs: int = setting(3, "the rate rises linearly from --warmup-lr", at_least=0)
    min_lr: float = setting(1e-6, "where the schedule ends", at_least=0, at_most=LARGEST_RATE)
    warmup_lr: float = setting(1e-7, "where the warm-up begins", at_least=0, at_most=LARGEST_RATE)


@dataclass(frozen=True)
class VideoEvaluationSettings(ClassifierEvaluationSettings):
    """Evaluation."""

    val_batch_size: int | None = setting(None, "clips per process", metavar="N", at_least=1, incidental=True, told="--batch-size")
    clips: int = setting(1, "of a video, spread over it, whose mean counts", metavar="N", at_least=1, at_most=MOST_FRAMES)
    crops: int = setting(1, "of each clip: 1 in the middle, 3 along the longer side", metavar="1|3")


@dataclass(frozen=True)
class Settings:
    """Settings of train/video.py."""

    model: VideoModelSettings
    data: VideoDataSettings
    augmentation: VideoAugmentationSettings
    optimizer: VideoOptimizerSettings
    schedule: VideoScheduleSettings
    evaluation: VideoEvaluationSettings
    run: RunSettings


def clips_of(settings: Settings) -> Clips:
    data, evaluation = settings.data, settings.evaluation
    return Clips(data.frames, data.sampling, data.frame_stride, evaluation.clips, evaluation.crops)


def trained_values(weights: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
    """Takes for `--eval` from its checkpoint which model it is, and how its clips are made."""
    if "frames" not in weights.meta:
        raise UsageError(f"{weights.source} is no classifier of videos that train/video.py wrote")
    return from_checkpoint(weights, given, FROM_CHECKPOINT)


def check(settings: Settings) -> None:
    """Refuses what cannot work together."""
    data, evaluation = settings.data, settings.evaluation
    if evaluation.crops not in CROPS:
        raise UsageError(f"--crops {evaluation.crops}: it must be 1, or 3")
    if not data.data_dir:
        raise UsageError(
            "give the videos: --data-dir DIR with DIR/train/CLASS/*.mp4 and DIR/val/CLASS/*.mp4, or lists of what is in it by --train-list "
            "and --val-list. No videos at hand? `make demo-video` makes some"
        )
    if evaluation.eval:
        if settings.run.resume or settings.model.init_from:
            raise UsageError("--eval CKPT names the weights itself: leave --resume and --init-from out")
        return
    check_recipe(settings.augmentation, data.batch_size, settings.schedule, "small-video.yaml")
