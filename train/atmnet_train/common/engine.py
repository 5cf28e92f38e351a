"""The training loop: updates, evaluation, checkpoints and stopping, for any model, loss and metric.

A program gives a loader, a function from a batch to its loss or the named parts of it, a function that evaluates models, and the name of
the metric that decides which weights are best (larger is better).
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from atmnet.weights.history import HISTORY, history_name, prune_history
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .checkpoints import Checkpointer, Progress
from .errors import RunError
from .history import Table
from .progress import ProgressLine
from .seeding import STEP, seed_everything
from .stop import Stop
from .tables import OF_BEST, Tables, write_tables

Batch = Any
Metrics = dict[str, float]
BatchLoss = Callable[[nn.Module, Batch, int], Tensor | dict[str, Tensor]]  # model, batch, epoch index
Models = dict[str, nn.Module]  # by the prefix of their metrics: "" for the trained one, "ema_" for its average


class Stopped(Exception):
    """A stop was asked for and the state is saved."""


def updates_between_syncs(seconds_per_update: float) -> int:
    """Number of updates after which processes on GPUs sync losses and a wish to stop.

    Each time the queue of GPU work runs dry, so not at every update; but a launcher that passes a signal on kills 30 s later, and the state
    must be saved by then.
    """
    return min(10, max(1, int(5 / seconds_per_update)))


@dataclass
class Plan:
    """Plan of a run: how long, how often, and where to."""

    epochs: int
    updates_per_epoch: int
    accumulate: int  # micro-batches per update
    images_per_update: int  # over all processes
    seed: int
    metric: str
    output: Path
    clip_grad: float | None = None
    sched_on_updates: bool = False
    by_updates: bool = False  # people count in updates; an epoch is merely what lies between two evaluations
    checkpoint_steps: int = 500
    checkpoint_hist: int = 0
    log_interval: int = 50


class Evaluate(Protocol):
    """Evaluation of models, and what it finds besides metrics."""

    def __call__(self, models: Models, check_stop: Callable[[], None]) -> dict[str, Metrics]:
        """Metrics of all models in one pass over the data, calling `check_stop` now and then."""

    def tables(self, name: str) -> Tables:
        """What the last pass found of a model, by the name of the file it goes to. The main process alone asks."""

    def draw(self, folder: Path, prefix: str) -> list[Path]:
        """Draws the tables in a folder whose names begin with a prefix; returns all pictures. The main process alone asks."""


class Watch(Protocol):
    """Watch over what one process notices and all must know."""

    pending: bool

    def sync(self) -> None:
        """Sync the processes: called on every one once one has something pending; it may raise."""


@dataclass
class Synced:
    """Result of a sync: what the processes have met since the last, the same on all of them."""

    losses: list[list[float]]  # of each update, the mean over the processes: the loss, and its parts if it has any
    stop: bool
    pending: bool


class Engine:
    """Owns the run from the first update to the last."""

    def __init__(
        self,
        accelerator: Accelerator,
        plan: Plan,
        model: nn.Module,
        optimizer: Any,
        scheduler: Scheduler,
        ema: ModelEmaV3 | None,
        checkpointer: Checkpointer,
        watch: Watch,
    ) -> None:
        self.accelerator = accelerator
        self.plan = plan
        self.model = model
        self.raw_model = accelerator.unwrap_model(model)  # clean names, as the EMA has them
        self.optimizer = optimizer
        self.scheduler = scheduler  # of timm, not prepared: Accelerate would step it once per process
        self.ema = ema
        self.checkpointer = checkpointer
        self.watch = watch
        self.stop = Stop()
        self.progress = Progress()
        self.saved_at: int | None = None
        self.parts: list[str] = []  # of the loss, where it has any
        self.steps = Table(plan.output / "steps.csv")
        self.epochs = Table(plan.output / "summary.csv")
        self.unsynced: list[tuple[float, Tensor]] = []  # learning rate and losses of the updates since the last sync
        self.since = time.perf_counter()  # of the last sync
        self.sync_every = 1
        self.seconds_per_update = math.inf  # not known yet

    def resume(self, path: Path) -> list[str]:
        """Takes up the state of a checkpoint; returns what is worth telling about it."""
        self.progress, notes = self.checkpointer.load(path)
        self.saved_at = self.progress.updates
        if self.accelerator.is_main_process and not path.parent.samefile(self.plan.output):
            beside = [f"{prefix}{name}" for prefix in ("", "ema_") for name in OF_BEST]
            for name in (self.steps.path.name, self.epochs.path.name, "best.safetensors", "best_ema.safetensors", *beside):
                if (path.parent / name).is_file():  # what the run has measured and its best weights move along
                    shutil.copyfile(path.parent / name, self.plan.output / name)
            if (path.parent / HISTORY).is_dir():
                shutil.copytree(path.parent / HISTORY, self.plan.output / HISTORY, dirs_exist_ok=True)
        if self.progress.epoch >= self.plan.epochs:
            notes.append("nothing is left to be trained")
        if self.progress.update > self.plan.updates_per_epoch:
            notes.append(f"update {self.progress.update} of an epoch that has {self.plan.updates_per_epoch} here: it ends at once")
        return [f"going on from {path}: {self._place(self.progress.epoch)}, after update {self.progress.updates}", *notes]

    def _place(self, epoch: int) -> str:
        """Name by which people know an epoch."""
        if not self.plan.by_updates:
            return f"epoch {epoch + 1}"
        return f"updates {epoch * self.plan.updates_per_epoch + 1}-{(epoch + 1) * self.plan.updates_per_epoch}"

    def fit(
        self,
        batches: Callable[[int, int], Iterator[Batch]],
        batch_loss: BatchLoss,
        evaluate: Evaluate,
    ) -> None:
        """`batches(epoch, start)` yields the micro-batches of an epoch from number `start` on. Raises `Stopped` when asked to stop."""
        if self.accelerator.is_main_process:
            progress, resumed = self.progress, self.saved_at is not None
            self.steps.start((lambda row: row["update"] <= progress.updates) if resumed else None)
            self.epochs.start((lambda row: row["epoch"] <= progress.epoch) if resumed else None)  # which counts those done
        with self.stop:
            while self.progress.epoch < self.plan.epochs:
                self._train_epoch(batches, batch_loss)
                if self.saved_at != self.progress.updates:
                    self.save()  # an evaluation takes long enough to be interrupted
                self._end_epoch(evaluate)

    def _set_lr(self, update: int) -> float:
        """The learning rate of an update of this epoch: it depends on the place alone, so there is no scheduler state to keep."""
        if self.plan.sched_on_updates:  # not progress.updates: epochs before a resumption may have had more or fewer
            self.scheduler.step_update(self.progress.epoch * self.plan.updates_per_epoch + update)
        else:
            self.scheduler.step(self.progress.epoch)
        return max(group["lr"] for group in self.optimizer.param_groups)

    def _train_epoch(
        self,
        batches: Callable[[int, int], Iterator[Batch]],
        batch_loss: BatchLoss,
    ) -> None:
        progress, plan = self.progress, self.plan
        self.model.train()
        source = batches(progress.epoch, progress.update * plan.accumulate) if progress.update < plan.updates_per_epoch else iter(())
        line = self._progress_line()
        self.since = time.perf_counter()
        try:
            while progress.update < plan.updates_per_epoch:
                lr = self._set_lr(progress.update)
                losses = self._update(source, batch_loss, line)
                self._count(lr, losses)
                save_due = progress.updates % plan.checkpoint_steps == 0
                if not save_due and not self._sync_due():
                    continue
                found = self._sync()
                self._log(self._record(found.losses), line)
                self._measure_speed()
                if found.pending:
                    self.watch.sync()
                if save_due or found.stop:
                    self.save()
                if found.stop:
                    raise Stopped
        finally:
            line.close()

    def _progress_line(self) -> ProgressLine:
        plan, progress = self.plan, self.progress
        return ProgressLine(
            total=plan.epochs * plan.updates_per_epoch if plan.by_updates else plan.updates_per_epoch,
            start=progress.updates if plan.by_updates else progress.update,
            label="update" if plan.by_updates else f"epoch {progress.epoch + 1}/{plan.epochs}",
            images_per_update=plan.images_per_update,
            remaining=(plan.epochs - progress.epoch) * plan.updates_per_epoch - progress.update,
            interval=plan.log_interval,
            shown=self.accelerator.is_main_process,
        )

    def _update(
        self,
        source: Iterator[Batch],
        batch_loss: BatchLoss,
        line: ProgressLine,
    ) -> Tensor:
        """One optimizer step; returns the loss, and its parts if it has any, each the mean over this process's micro-batches."""
        total: Tensor | float = 0.0
        for micro in range(self.plan.accumulate):
            waiting = time.perf_counter()
            batch = next(source)
            line.waited += time.perf_counter() - waiting
            seed_everything(self.plan.seed, STEP, self.progress.updates, micro, self.accelerator.process_index)
            with self.accelerator.accumulate(self.model):
                found = batch_loss(self.model, batch, self.progress.epoch)
                parts = found if isinstance(found, dict) else {}
                loss = torch.stack(list(parts.values())).sum() if isinstance(found, dict) else found
                self.parts = list(parts)
                self.accelerator.backward(loss)  # divides by the number of micro-batches
                if self.accelerator.sync_gradients and self.plan.clip_grad:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.plan.clip_grad)
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += torch.stack([loss, *parts.values()]).detach().float() / self.plan.accumulate
        if self.ema is not None:
            self.ema.update(self.raw_model, step=self.progress.updates + 1 if self.ema.use_warmup else None)
        assert isinstance(total, Tensor)
        return total

    def _count(self, lr: float, losses: Tensor) -> None:
        """One more update is done, which the other processes have not heard of."""
        self.progress.update += 1
        self.progress.updates += 1
        self.progress.images += self.plan.images_per_update
        self.unsynced.append((lr, losses))

    def _sync_due(self) -> bool:
        """Says when to sync: on every process alike, but for a stop that a single process is asked for."""
        stop_now = self.stop.requested and self.accelerator.num_processes == 1
        return stop_now or len(self.unsynced) == self.sync_every or self.progress.update == self.plan.updates_per_epoch

    def _sync(self) -> Synced:
        """Brings together what the processes have met since the last time: the only communication besides gradients and checkpoints."""
        own = torch.tensor([self.stop.requested, self.watch.pending, self.seconds_per_update], device=self.accelerator.device)
        losses = torch.stack([own_losses for _, own_losses in self.unsynced])
        *flat, stop, pending, seconds = self.accelerator.reduce(torch.cat([losses.flatten(), own]), "mean").tolist()
        if self.accelerator.device.type != "cpu":  # where nothing is queued, and every update can be looked at
            self.sync_every = updates_between_syncs(seconds)
        width = losses.shape[1]
        return Synced([flat[start : start + width] for start in range(0, len(flat), width)], stop > 0, pending > 0)

    def _record(self, losses: list[list[float]]) -> list[Metrics]:
        """A row of steps.csv for each update since the last time; refuses to go on from a loss that is not finite."""
        first, rows = self.progress.updates - len(losses) + 1, list[Metrics]()
        for update, ((lr, _), (loss, *parts)) in enumerate(zip(self.unsynced, losses, strict=True), first):
            if not math.isfinite(loss):
                raise RunError(self._lost(loss, update))
            self.progress.loss_sum += loss
            row: Metrics = {"update": update, "epoch": self.progress.epoch + 1, "loss": loss, "lr": lr}
            rows.append(row | dict(zip(self.parts, parts, strict=True)))
        if self.accelerator.is_main_process:
            self.steps.append(*rows)
        return rows

    def _log(self, rows: list[Metrics], line: ProgressLine) -> None:
        last = rows[-1]
        if line.advance(last["loss"], last["lr"], len(rows)):  # often enough for a curve of a short epoch
            shown = {f"train/{name}": last[name] for name in ("loss", "lr", *self.parts)}
            speed = {"train/images_per_second": line.images_per_second, "train/data_wait": line.data_wait}
            self.accelerator.log(shown | speed, step=self.progress.updates)

    def _measure_speed(self) -> None:
        now = time.perf_counter()
        self.seconds_per_update = (now - self.since) / len(self.unsynced)
        self.progress.seconds += now - self.since
        self.since, self.unsynced = now, []

    def _lost(self, loss: float, update: int) -> str:
        last = self.plan.output / "last.pt"
        kept = f"{last} keeps the state after update {self.saved_at}" if self.saved_at is not None else "no checkpoint was written yet"
        return (
            f"the loss of update {update} ({self._place(self.progress.epoch)}) is {loss}; {kept}. "
            "Try a smaller --lr, --clip-grad 1.0, or --mixed-precision bf16"
        )

    def save(self) -> None:
        if self.accelerator.is_main_process:
            self.steps.sync()
            self.epochs.sync()
        self.checkpointer.save(self.progress)
        self.saved_at = self.progress.updates

    def stop_during_evaluation(self) -> None:
        """Evaluations call it now and then, on every process alike."""
        flag = torch.tensor(float(self.stop.requested), device=self.accelerator.device)
        if self.accelerator.reduce(flag, "sum").item() > 0:
            raise Stopped  # the state was saved before the evaluation began

    def _end_epoch(self, evaluate: Evaluate) -> None:
        progress, plan = self.progress, self.plan
        began = time.perf_counter()
        models = {"": self.model} | ({"ema_": self.ema.module} if self.ema is not None else {})
        row: Metrics = {
            "epoch": progress.epoch + 1,
            "updates": progress.updates,
            "train_loss": progress.loss_sum / max(progress.update, 1),
            "lr": self._set_lr(max(progress.update - 1, 0)),  # of the last update, which may have been before a resumption
        }
        better = dict[str, Metrics]()  # than ever before, by the model's prefix
        for prefix, metrics in evaluate(models, self.stop_during_evaluation).items():
            row |= {f"val_{prefix}{name}": value for name, value in metrics.items()}
            key, value = prefix + plan.metric, metrics[plan.metric]
            if value > progress.best.get(key, -math.inf):
                progress.best[key], progress.best_epoch[key] = value, progress.epoch
                better[prefix] = metrics
        row |= {"seconds": progress.seconds, "eval_seconds": time.perf_counter() - began}
        if self.accelerator.is_main_process:
            self.epochs.append(row)
            shown = " · ".join(
                f"{name} {value:.4f}" for name, value in row.items() if name.startswith(("train", "val")) and not name.endswith("images")
            )
            done = f"update {progress.updates}" if plan.by_updates else f"epoch {progress.epoch + 1}/{plan.epochs} done"
            print(f"{done}: {shown}", flush=True)
        self.accelerator.log(
            {name.replace("_", "/", 1): value for name, value in row.items() if name.startswith("val")}, step=progress.updates
        )
        progress.epoch, progress.update, progress.loss_sum = progress.epoch + 1, 0, 0.0
        for prefix, metrics in better.items():
            self.checkpointer.save_weights(f"best{prefix and '_ema'}.safetensors", models[prefix], epoch=progress.epoch, **metrics)
            if self.accelerator.is_main_process:
                write_tables(plan.output, prefix, evaluate.tables(prefix))
        if plan.checkpoint_hist:
            self._keep_weights(models, row)
        self.save()

    def _keep_weights(self, models: Models, row: Metrics) -> None:
        """The weights of this evaluation beside those of others, of which the last and the best stay."""
        for prefix, model in models.items():
            column = f"val_{prefix}{self.plan.metric}"
            name = history_name(self.progress.epoch, bool(prefix))
            self.checkpointer.save_weights(name, model, epoch=self.progress.epoch, measured={self.plan.metric: row[column]})
            if self.accelerator.is_main_process:
                values = {int(row["epoch"]): row[column] for row in self.epochs.rows if column in row}
                prune_history(self.plan.output, values, self.plan.checkpoint_hist, bool(prefix))


def end_quietly(accelerator: Accelerator) -> None:
    """Closes trackers and destroys the process group."""
    accelerator.end_training()
    with suppress(Exception):
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
