"""Train an ATMNet of videos on Kinetics, UCF101 or any labelled videos: `python train/video.py --help`."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from .classification.images import Images, check_classes, sample_names, split_folder
from .classification.model import normalisation
from .classification.optimization import BatchLoss
from .classification.settings import of_model
from .classification.training import training_of
from .clips.loaders import ClipEvaluator, train_loader
from .clips.model import build_model, check_model, start_from
from .clips.pictures import sheets
from .clips.settings import Settings, check, trained_values
from .clips.videos import Videos, check_library, open_split
from .common.broken import BrokenImages
from .common.errors import UsageError, run_program
from .common.listing import Tell, tell_of_overlap
from .common.program import Program
from .common.runtime import make_accelerator
from .common.sampling import names_digest
from .common.seeding import seed_everything
from .common.task import claim_output, fit
from .common.trial import Trial, run_trial
from .common.weights import Weights, read_weights, shorten


def evaluate(settings: Settings, weights: Weights) -> None:
    """`--eval`: top-1 and top-5 of a checkpoint."""
    check_library()
    name, data, evaluation = settings.model.model, settings.data, settings.evaluation
    accelerator = make_accelerator(settings.run)
    classes = {label: index for index, label in enumerate(weights.said("classes"))}
    num_classes = weights.num_classes or len(classes)
    videos = open_split(data, data.val_split, data.val_list, classes, accelerator.print)
    model = build_model(settings, num_classes, loaded=True)
    check_model(model, settings, num_classes)
    broken = BrokenImages(data.max_broken, len(videos.source), "videos")
    views = f"{evaluation.clips} x {evaluation.crops} views of {data.frames} frames at {data.img_size}"
    trial = Trial(
        name=name,
        settings=settings,
        report={
            "model": name,
            "ema": settings.model.ema,
            "img_size": data.img_size,
            "crop_pct": evaluation.crop_pct,
            "frames": data.frames,
            "sampling": data.sampling,
            "clips": evaluation.clips,
            "crops": evaluation.crops,
        },
        model=model,
        evaluate=ClipEvaluator(videos, settings, accelerator, *normalisation(model), broken),
        broken=broken,
        in_words=lambda found: (
            f"{found['images']:.0f} videos in {views} · top-1 {found['top1']:.3f} · top-5 {found['top5']:.3f} · loss {found['loss']:.4f}"
        ),
        files="eval_confusion.png, eval_wrong.png",
        predicted="VIDEOS",
    )
    run_trial(settings.run, accelerator, weights, trial)


def train(settings: Settings) -> None:
    check_library()
    run, data = settings.run, settings.data
    resume = claim_output(run)
    accelerator = make_accelerator(run, data.grad_accum_steps)
    videos, val_videos, num_classes = open_both(settings, accelerator.print)

    # The same weights on every process, whatever its number.
    seed_everything(run.seed)
    model = first_model(settings, accelerator, num_classes, resumed=resume is not None)
    check_model(model, settings, num_classes)
    mean, std = normalisation(model)
    broken = BrokenImages(data.max_broken, len(videos.source), "videos")
    loader = train_loader(videos, settings, accelerator, mean, std, broken)
    batch_loss = BatchLoss(settings.augmentation, num_classes)
    evaluator = ClipEvaluator(val_videos, settings, accelerator, mean, std, broken)
    task = training_of(
        settings,
        accelerator,
        model,
        videos,
        num_classes,
        loader,
        batch_loss,
        evaluator,
        order={"videos": len(videos.source), "names": names_digest(labelled_names(videos.source))},
        meta={"frames": data.frames},
        shown=sheets,
        broken=broken,
        data=f"{len(videos.source)} training and {len(val_videos.source)} validation videos of {num_classes} classes, "
        f"{data.sampling} clips of {data.frames} frames at {data.img_size}",
        example=(data.batch_size, 3, data.frames, data.img_size, data.img_size),
        predicted="VIDEOS",
    )
    fit(run, accelerator, task, resume)


def labelled_names(videos: Videos) -> list[str]:
    """Names with the number of the class, which those of a list do not tell."""
    names = sample_names(videos)
    return [f"{name}\t{target}" for name, (_, target) in zip(names, videos.samples, strict=True)]


def first_model(settings: Settings, accelerator: Accelerator, num_classes: int, resumed: bool) -> Any:
    """Builds the model with new weights or those of `--init-from`; a resumed run gets its own later."""
    if not settings.model.init_from or resumed:
        return build_model(settings, num_classes, loaded=resumed)
    model, told = start_from(settings, num_classes, read_weights(settings.model.init_from, settings.model.ema))
    accelerator.print(told)
    return model


def open_both(settings: Settings, tell: Tell) -> tuple[Images, Images, int]:
    """Training and validation videos, and the number of classes, all agreeing."""
    data = settings.data
    videos = open_split(data, data.train_split, data.train_list, None, tell)
    num_classes = data.num_classes or len(videos.classes or ())
    check_classes(videos, num_classes, "--num-classes")
    if min(num_classes, videos.distinct) < 2:
        raise UsageError(f"{data.train_list or data.data_dir} has a single class to train on: any network is right about it at once")
    val_videos = open_split(data, data.val_split, data.val_list, videos.classes, tell)
    if data.train_list is None and data.val_list is None:
        root = Path(str(data.data_dir))
        tell_of_overlap(split_folder(root, data.train_split), split_folder(root, data.val_split), tell)
    elif both := {path for path, _ in videos.source.samples} & {path for path, _ in val_videos.source.samples}:
        named = shorten(sorted(both), 3)
        tell(f"{len(both)} validation videos are trained on too ({named}): what is measured on them says nothing of others")
    return videos, val_videos, num_classes


PROGRAM = Program(
    name="video.py",
    description="Train or evaluate an ATMNet of videos on Kinetics, UCF101 or any labelled videos.",
    settings=Settings,
    from_checkpoint=trained_values,
    dependent=[of_model],
    check=check,
    train=train,
    evaluate=evaluate,
)
parse, main = PROGRAM.parse, PROGRAM.main

if __name__ == "__main__":
    run_program(main)
