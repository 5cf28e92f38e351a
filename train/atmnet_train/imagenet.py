"""Train an ATMNet, or any timm model, on ImageNet or any labelled images: `python train/imagenet.py --help`."""

from typing import Any

from accelerate import Accelerator

from .classification.distillation import open_teacher
from .classification.images import Images, check_classes, data_folder, open_split, sample_names, split_folder
from .classification.loaders import Evaluator, train_loader
from .classification.model import build_model, check_outputs, classes_for_eval, normalisation, start_from
from .classification.optimization import BatchLoss
from .classification.settings import Settings, check, dependent, from_checkpoint
from .classification.training import training_of
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
    name, data = settings.model.model, settings.data
    accelerator = make_accelerator(settings.run)  # first: a streamed data set is sharded across the processes there are
    num_classes = weights.num_classes or data.num_classes or 1000
    classes = classes_for_eval(data, weights, num_classes)
    images = open_split(data, settings.run.seed, data.val_split, classes, training=False, tell=accelerator.print)
    check_classes(images, num_classes, f"the checkpoint {weights.source}")
    model = build_model(settings.model, num_classes, loaded=True)
    check_outputs(model, settings.model, num_classes, 2, data.img_size, data.img_size)
    broken = BrokenImages(data.max_broken, len(images.source))
    trial = Trial(
        name=name,
        settings=settings,
        report={"model": name, "ema": settings.model.ema, "img_size": data.img_size, "crop_pct": settings.evaluation.crop_pct},
        model=model,
        evaluate=Evaluator(images, settings, accelerator, *normalisation(model), broken),
        broken=broken,
        in_words=lambda found: (
            f"{found['images']:.0f} images at {data.img_size} · top-1 {found['top1']:.3f} · top-5 {found['top5']:.3f} · "
            f"loss {found['loss']:.4f}"
        ),
        files="eval_confusion.png, eval_wrong.png",
    )
    run_trial(settings.run, accelerator, weights, trial)


def train(settings: Settings) -> None:
    run, data = settings.run, settings.data
    resume = claim_output(run)
    accelerator = make_accelerator(run, data.grad_accum_steps)
    images, val_images, num_classes = open_both(settings, accelerator.print)

    # The same weights on every process, whatever its number.
    seed_everything(run.seed)
    model = first_model(settings, accelerator, num_classes, resumed=resume is not None)
    check_outputs(model, settings.model, num_classes, data.batch_size, data.img_size, data.img_size)
    mean, std = normalisation(model)
    teacher = open_teacher(settings.distillation, accelerator, num_classes, images.classes, (mean, std))
    broken = BrokenImages(data.max_broken, len(images.source))
    loader = train_loader(images, settings, accelerator, mean, std, broken)
    batch_loss = BatchLoss(settings.augmentation, num_classes, teacher)
    evaluator = Evaluator(val_images, settings, accelerator, mean, std, broken)
    task = training_of(
        settings,
        accelerator,
        model,
        images,
        num_classes,
        loader,
        batch_loss,
        evaluator,
        order={
            "images": len(images.source),
            "names": names_digest(sample_names(images.source)),
            "aug_repeats": settings.augmentation.aug_repeats,
        },
        meta={},
        broken=broken,
        data=f"{len(images.source)} training and {len(val_images.source)} validation images of {num_classes} classes at {data.img_size}",
        example=(data.batch_size, 3, data.img_size, data.img_size),
    )
    fit(run, accelerator, task, resume)


def first_model(settings: Settings, accelerator: Accelerator, num_classes: int, resumed: bool) -> Any:
    """Builds the model with new weights or those of `--init-from`; a resumed run gets its own later."""
    if not settings.model.init_from or resumed:
        return build_model(settings.model, num_classes, loaded=resumed)
    weights = read_weights(settings.model.init_from, bool(settings.model.ema))
    model = start_from(settings.model, num_classes, weights)
    accelerator.print(f"starting from {weights.source}" + (", with a new classifier" if weights.num_classes != num_classes else ""))
    return model


def open_both(settings: Settings, tell: Tell) -> tuple[Images, Images, int]:
    """Training and validation images, and the number of classes, all agreeing."""
    data, seed = settings.data, settings.run.seed
    images = open_split(data, seed, data.train_split, None, training=True, tell=tell)
    num_classes = data.num_classes or len(images.classes or ())
    if not num_classes:
        raise UsageError(f"--dataset {data.dataset} does not tell its classes: give --num-classes")
    check_classes(images, num_classes, "--num-classes")
    if min(num_classes, images.distinct) < 2:
        raise UsageError(
            f"{data.dataset or data.data_dir} has a single class to train on: any network is right about it at once. Images of what is to "
            "be told apart from it go to a class folder of their own"
        )
    val_images = open_split(data, seed, data.val_split, images.classes, training=False, tell=tell)
    if not data.dataset:
        root = data_folder(data)
        tell_of_overlap(split_folder(root, data.train_split), split_folder(root, data.val_split), tell)
    if images.classes and val_images.classes and images.classes != val_images.classes:
        raise UsageError(
            f"the classes of {data.train_split} ({shorten(list(images.classes))}) and of {data.val_split} "
            f"({shorten(list(val_images.classes))}) differ"
        )
    return images, val_images, num_classes


PROGRAM = Program(
    name="imagenet.py",
    description="Train or evaluate an ATMNet, or any timm model, on ImageNet or a folder of images.",
    settings=Settings,
    from_checkpoint=from_checkpoint,
    dependent=[dependent],
    check=check,
    train=train,
    evaluate=evaluate,
)
parse, main = PROGRAM.parse, PROGRAM.main

if __name__ == "__main__":
    run_program(main)
