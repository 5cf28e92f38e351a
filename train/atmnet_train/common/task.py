"""A training from its model to its summary: what every program does alike."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from atm_triton.backend import device_name

from .broken import BrokenImages
from .checkpoints import Checkpointer, check_room, find_resume
from .config import write_config
from .engine import BatchLoss, Engine, Evaluate, Plan, Stopped, end_quietly
from .errors import GO_ON, RunError, UsageError, explained
from .loading import TrainLoader
from .pictures import Example, draw_grid, show_trackers
from .runtime import RunSettings, start_trackers
from .settings import flatten
from .summary import draw_curves, versions, write_json
from .tables import CLASSES, read_csv
from .tuning import tune_kernels

PHOTOS = "PHOTOS"  # what the weights of most programs can be shown
Batches = Callable[[int, int], Iterator[Any]]  # of an epoch, from a place in it on


def claim_output(settings: RunSettings) -> Path | None:
    """The checkpoint to go on from, if any; refuses a folder that holds another run."""
    output = Path(settings.output)
    resume = find_resume(settings.resume, output) if settings.resume else None
    last = output / "last.pt"
    if last.exists() and (resume is None or not last.samefile(resume)):
        raise UsageError(f"{output} holds a run already: go on with --resume auto, or give another --output")
    if resume is None and (best := sorted(output.glob("best*.safetensors"))):
        raise UsageError(f"{output} holds a run without its last.pt: {', '.join(path.name for path in best)}. Give another --output")
    return resume


def make_plan(
    run: RunSettings, loader: TrainLoader, metric: str, epochs: int, accumulate: int, clip_grad: float | None, **options: bool
) -> Plan:
    """Makes it from the settings that all programs have; `options` are the plan's own."""
    return Plan(
        epochs=epochs,
        updates_per_epoch=loader.updates_per_epoch,
        accumulate=accumulate,
        images_per_update=loader.images_per_update,
        seed=run.seed,
        metric=metric,
        output=Path(run.output),
        clip_grad=clip_grad,
        checkpoint_steps=run.checkpoint_steps,
        checkpoint_hist=run.checkpoint_hist,
        log_interval=run.log_interval,
        **options,
    )


@dataclass
class Task:
    """Training of a program: what, on what, and how."""

    name: str
    settings: Any  # all of the program's, to be written down
    model: nn.Module
    optimizer: Any
    scheduler: Scheduler
    plan: Plan
    loader: TrainLoader
    batch_loss: BatchLoss
    evaluate: Evaluate
    broken: BrokenImages
    meta: dict[str, Any]  # goes into every checkpoint
    data: str  # what is trained on, for the line before the first update
    curves: Sequence[str]  # the metrics to draw, in percent
    example: tuple[int, ...]  # the shape of a batch of images
    examples: Callable[[Any], list[Example]]  # pictures of a batch, as the network gets it
    core: str = ""  # the submodule that takes such a batch, is compiled and tuned; the model itself where empty
    ema_decay: float = 0.0
    ema_warmup: bool = False
    predicted: str = PHOTOS


def fit(settings: RunSettings, accelerator: Accelerator, task: Task, resume: Path | None) -> None:
    """Trains, evaluates, saves, and leaves summary.json and curves.png, until the end or until asked to stop."""
    check_room(task.plan.output, task.model, task.ema_decay > 0, task.plan.checkpoint_hist)
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    model, optimizer = task.model.to(accelerator.device), task.optimizer
    if settings.tune:
        tune_kernels(accelerator, model.get_submodule(task.core), task.example)
    ema = ModelEmaV3(model, task.ema_decay, use_warmup=task.ema_warmup) if task.ema_decay > 0 else None
    model, optimizer = accelerator.prepare(model, optimizer)
    if accelerator.is_fsdp2 and ema is not None:
        ema.module = fsdp2_prepare_model(accelerator, ema.module)  # sharded like the model it averages
    if settings.compile:
        for module in (model, ema.module if ema is not None else None):
            if module is not None:
                compile_core(accelerator, module, task.core)
    checkpointer = Checkpointer(accelerator, model, ema.module if ema is not None else None, optimizer, task.plan.output, task.meta)
    engine = Engine(accelerator, task.plan, model, optimizer, task.scheduler, ema, checkpointer, task.broken)
    if resume is not None:
        for note in engine.resume(resume):
            accelerator.print(note)
    if accelerator.is_main_process:
        write_config(task.plan.output / "config.yaml", task.settings)
    start_trackers(accelerator, "tensorboard", flatten(task.settings), engine.progress.updates)
    length = f"{task.plan.epochs} epochs of {task.plan.updates_per_epoch} updates"
    if task.plan.by_updates:
        length = f"{task.plan.epochs * task.plan.updates_per_epoch} updates, evaluated every {task.plan.updates_per_epoch}"
    precision = "no mixed precision" if accelerator.mixed_precision == "no" else f"{accelerator.mixed_precision} mixed precision"
    accelerator.print(
        f"{task.name}, {parameters / 1e6:.2f} M parameters · {accelerator.num_processes} x {device_name(accelerator.device)}, "
        f"{precision} · {task.data} · global batch {task.loader.images_per_update}, "
        f"lr {max(group['initial_lr'] for group in task.optimizer.param_groups):.3g} · {length} · {task.plan.output}"
    )
    facts: dict[str, Any] = {"parameters": parameters, "finished": False}
    try:
        with explained(GO_ON):
            engine.fit(with_picture(task, accelerator, task.loader.batches), task.batch_loss, task.evaluate)
        facts["finished"] = True
    except Stopped:
        pass
    except RunError as error:
        if accelerator.is_main_process:
            with suppress(RunError, OSError):  # such as the full disk that this is about
                finish(task, accelerator, engine, facts | {"error": str(error), "unreadable": task.broken.found})
            with suppress(Exception):  # whatever a tracker whose folder is gone raises
                for tracker in accelerator.trackers:
                    tracker.finish()
        raise
    if accelerator.is_main_process:
        finish(task, accelerator, engine, facts | {"unreadable": task.broken.found})
        if not facts["finished"]:
            asked = f" ({engine.stop.signal.name})" if engine.stop.signal else ""
            print(
                f"stopped{asked} after update {engine.progress.updates}; go on with the same command and --resume {task.plan.output}",
                flush=True,
            )
        else:
            print(next_command(task.plan.output, task.predicted), flush=True)
    end_quietly(accelerator)


def compile_core(accelerator: Accelerator, model: nn.Module, core: str) -> None:
    """Compiles in place, so that names stay clean."""
    (cast(nn.Module, accelerator.unwrap_model(model)).get_submodule(core) if core else model).compile()


def with_picture(task: Task, accelerator: Accelerator, batches: Batches) -> Batches:
    """The same batches; of the first of the run, batch.png is drawn when the network is about to get it."""

    def drawing(epoch: int, start: int) -> Iterator[Any]:
        source = batches(epoch, start)
        if epoch == start == 0 and accelerator.is_main_process:
            first = next(source)
            path = task.plan.output / "batch.png"
            draw_grid(path, task.examples(first), "images of the first update, as the network gets them")
            show_trackers(accelerator, [path], 0)
            yield first
        yield from source

    return drawing


def next_command(checkpoint: Path | str, predicted: str) -> str:
    """The line of a run that is over: what its weights can do."""
    return f"next: python -m atmnet predict --checkpoint {shlex.quote(str(checkpoint))} {predicted}"


def finish(task: Task, accelerator: Accelerator, engine: Engine, facts: dict[str, Any]) -> None:
    """summary.json, curves.png and the pictures of the evaluation, of a run that is finished or stopped."""
    plan, progress, rows = engine.plan, engine.progress, engine.epochs.rows
    peak = torch.cuda.max_memory_allocated() / 2**20 if accelerator.device.type == "cuda" else None
    unit = "update" if plan.by_updates else "epoch"
    when = {name: (index + 1) * (plan.updates_per_epoch if plan.by_updates else 1) for name, index in progress.best_epoch.items()}
    write_json(
        plan.output / "summary.json",
        facts
        | {
            "epochs": progress.epoch,
            "updates": progress.updates,
            "best": {name: {"value": value, unit: when[name]} for name, value in progress.best.items()},
            "last": rows[-1] if rows else None,
            **{f"{prefix}classes": found for prefix in ("", "ema_") if (found := read_csv(plan.output / f"{prefix}{CLASSES}"))},
            "training_seconds": progress.seconds,
            "images_per_second": progress.images / max(progress.seconds, 1e-9),
            "peak_memory_mib": peak,
            "processes": accelerator.num_processes,
            "device": device_name(accelerator.device),
            "mixed_precision": accelerator.mixed_precision,
            "versions": versions(),
            "args": flatten(task.settings),
        },
    )
    if rows:
        prefixes = [name.removesuffix(plan.metric) for name in progress.best]
        drawn = [path for prefix in prefixes for path in task.evaluate.draw(plan.output, prefix)]
        show_trackers(accelerator, drawn, progress.updates)
        draw_curves(plan.output / "curves.png", rows, engine.steps.rows, plan.updates_per_epoch, task.curves, plan.by_updates)
        best = " · ".join(f"best {name} {value:.3f} ({unit} {when[name]})" for name, value in progress.best.items())
        print(f"{best} · {plan.output}/summary.json, curves.png", flush=True)
