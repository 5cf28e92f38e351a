"""The full state of a run in one file.

It is a plain file with clean parameter names, gathered from whatever holds it (one process, DDP, FSDP2, a compiled model),
so a run may be resumed on another number of processes.
"""

import math
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from atmnet.weights.digest import digest_of
from atmnet.weights.history import HISTORY
from atmnet.weights.reader import DIGEST, check_finite, read_torch, safetensors_metadata
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from .errors import RunError, UsageError
from .files import write_atomically
from .weights import check_fits, shorten

# Of an optimizer's parameter groups, which also hold state.
HYPERPARAMETERS = ("lr", "initial_lr", "lr_scale", "weight_decay", "momentum")

# Of a checkpoint's meta: what makes it another run. The place in one is counted in epochs, and where those are intervals, in intervals.
IDENTITY = ("model", "num_classes", "head", "neck", "detector", "eval_interval")

# Settings whose random numbers are drawn per process and not per sample.
DRAWN_BY_PROCESS = ("mixup", "cutmix", "drop_path")

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class Progress:
    """Place of a run. `update` counts within the epoch, `updates` since the start; one update is one optimizer step."""

    epoch: int = 0
    update: int = 0
    updates: int = 0
    loss_sum: float = 0.0  # over this epoch's updates
    seconds: float = 0.0  # of training, over all resumptions
    images: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: dict[str, int] = field(default_factory=dict)


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """The full weights on the CPU, by clean names. Every process must call it."""
    return cast(dict[str, Tensor], get_model_state_dict(model, options=FULL))


class Checkpointer:
    """Captures the state of a run in `last.pt` and puts it back."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, ema: nn.Module | None, optimizer: Any, folder: Path, meta: dict[str, Any]
    ) -> None:
        self.accelerator = accelerator
        self.model = accelerator.unwrap_model(model)
        self.ema = ema
        self.optimizer = getattr(optimizer, "optimizer", optimizer)  # the one inside Accelerate's wrapper
        self.folder = folder
        self.meta = meta | {"processes": accelerator.num_processes}

    def save(self, progress: Progress) -> None:
        """Writes last.pt: every process calls it, the main one writes."""
        weights = model_state(self.model)
        state = {
            "model": weights,
            "ema": model_state(self.ema) if self.ema is not None else None,
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer, options=FULL),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "progress": asdict(progress),
            "meta": self.meta,
        }
        if self.accelerator.is_main_process:
            # The loss was finite, but the step it made may not be: a checkpoint that cannot be resumed must not replace one that can.
            broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
            if broken:
                last = self.folder / "last.pt"
                raise RunError(
                    f"after update {progress.updates} these weights are no longer finite: {shorten(broken)}. They are not saved"
                    + (f"; {last} keeps the state from before. " if last.exists() else ". ")
                    + "Try a smaller --lr, --clip-grad 1.0, or --mixed-precision bf16"
                )
            state[DIGEST] = digest_of(state)
            write_atomically(self.folder / "last.pt", lambda file: torch.save(state, file))
        self.accelerator.wait_for_everyone()

    def save_weights(self, name: str, model: nn.Module, **metrics: Any) -> None:
        """The weights alone, as safetensors with what is needed to rebuild and evaluate the model."""
        state = model_state(self.accelerator.unwrap_model(model))
        if self.accelerator.is_main_process:
            tensors = {key: value.contiguous().clone() for key, value in state.items()}  # no two may share memory
            metadata = safetensors_metadata(tensors, {**self.meta, **metrics})
            write_atomically(self.folder / name, lambda file: file.write(safetensors_bytes(tensors, metadata)))

    def load(self, path: Path) -> tuple[Progress, list[str]]:
        """Puts the state back, the same on every process, and tells what is not as it was. Every process must see the file."""
        state = read_state(path, verify=self.accelerator.is_main_process)
        notes = differences(path, state, self.meta)
        check_fits(self.model, state["model"], str(path))
        set_model_state_dict(self.model, state["model"], options=FULL)
        if (self.ema is None) != (state["ema"] is None):
            raise UsageError(
                f"{path} was trained {'without' if self.ema is not None else 'with'} EMA: give the same --model-ema-decay as then"
            )
        if self.ema is not None:
            check_fits(self.ema, state["ema"], f"the average in {path}")
            set_model_state_dict(self.ema, state["ema"], options=FULL)
        own = get_optimizer_state_dict(self.model, self.optimizer)["state"]
        check_moments(path, cast(dict[str, Any], own), state["optimizer"].get("state"))
        # What was given now counts (a change is told): loading puts the checkpoint's values into the parameter groups too.
        given = [{name: group[name] for name in HYPERPARAMETERS if name in group} for group in self.optimizer.param_groups]
        try:
            set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"], options=FULL)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"{path}: the state of its optimizer is not this model's ({error}). To start anew from its weights: --init-from"
            ) from error
        for group, values in zip(self.optimizer.param_groups, given, strict=True):
            group.update(values)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return Progress(**state["progress"]), notes


def check_moments(path: Path, own: dict[str, Any], saved: Any) -> None:
    """Refuses a state of the optimizer with other shapes than its own, which would end the first update."""

    def is_like(value: Any, other: Any) -> bool:
        return not isinstance(value, Tensor) or (isinstance(other, Tensor) and value.shape == other.shape)

    found = saved if isinstance(saved, dict) else {}
    wrong = [
        f"{name}.{key}"
        for name, values in own.items()
        for key, value in values.items()
        if isinstance(found.get(name), dict) and key in found[name] and not is_like(value, found[name][key])
    ]
    if wrong:
        raise UsageError(f"{path}: the state of its optimizer is not this model's ({shorten(wrong)}). From its weights alone: --init-from")


def differences(path: Path, state: dict[str, Any], meta: dict[str, Any]) -> list[str]:
    """Refuses to go on with another model, or from the middle of an epoch in another order; other changes are allowed and told."""

    def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        return [f"{name} {old[name]} -> {new[name]}" for name in old if name in new and old[name] != new[name]]

    then = state["meta"]
    identity = {name: then[name] for name in IDENTITY if name in then}
    if other := changed(identity, meta):
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in identity.items() if meta.get(name) != value)
        raise UsageError(f"{path} is of another run: {', '.join(other)}. To go on with it give {flags}")
    if then["classes"] != meta["classes"]:
        raise UsageError(f"{path} was trained on other classes: {shorten(then['classes'])}; here {shorten(meta['classes'])}")
    if other := changed({"opt": then["recipe"].get("opt")}, meta["recipe"]):
        raise UsageError(f"{path} holds the state of another optimizer: {', '.join(other)}. Give the same --opt, or --init-from {path}")
    order = changed(then["order"], meta["order"])
    if order and state["progress"]["update"]:
        raise UsageError(
            f"{path} is in the middle of an epoch, which cannot go on in another order: {', '.join(order)}. Give the values it had, and "
            "the images (`names` is a digest of theirs)"
        )
    notes = []
    if other := order + changed(then["recipe"], meta["recipe"]):
        notes.append(f"not as before the resumption: {', '.join(other)}")
    drawn = [name for name in DRAWN_BY_PROCESS if meta["recipe"].get(name)] + ["a detector's samples"] * ("detector" in meta)
    if changed({"processes": then.get("processes")}, meta) and drawn:
        notes.append(
            f"not by as many processes as before ({then.get('processes')} -> {meta['processes']}): each draws random numbers of its own "
            f"({', '.join(drawn)}), so the losses will not be those of the uninterrupted run"
        )
    return notes


PARTS: dict[str, tuple[type, ...]] = {
    "model": (dict,),
    "ema": (dict, type(None)),
    "optimizer": (dict,),
    "scaler": (dict, type(None)),
    "progress": (dict,),
    "meta": (dict,),
}
META: dict[str, tuple[type, ...]] = {"model": (str,), "classes": (list,), "order": (dict,), "recipe": (dict,)}


def read_state(path: Path, verify: bool) -> dict[str, Any]:
    """State in a last.pt; with `verify`, compared with the digests in it."""
    try:
        state = dict(read_torch(path, mmap=True, verify=verify))
        for part in ("model", "ema") if verify else ():
            check_finite(path, {name: value for name, value in (state.get(part) or {}).items() if isinstance(value, Tensor)})
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"{error}{way_on(path)}") from error
    if "progress" not in state:
        raise UsageError(f"{path} holds no training state; --resume takes an output folder or its last.pt, --init-from takes weights")
    lost = [name for name, kinds in PARTS.items() if name not in state or not isinstance(state[name], kinds)]
    lost += [f"meta.{name}" for name, kinds in META.items() if "meta" not in lost and not isinstance(state["meta"].get(name), kinds)]
    lost += ["meta.classes"] * ("meta" not in lost and not all(isinstance(name, str) for name in state["meta"].get("classes") or ()))
    lost += ["optimizer.param_groups"] * ("optimizer" not in lost and not state["optimizer"].get("param_groups"))
    if lost or not is_progress(state["progress"]):
        raise UsageError(f"{path} is damaged: it lacks {shorten(lost) or 'its place in the run'}{way_on(path)}")
    return state


def is_progress(found: dict[str, Any]) -> bool:
    """Tell whether these are the values of a Progress."""

    def is_right(value: Any, default: Any) -> bool:
        kinds = (int, float) if isinstance(default, float) else type(default)
        return isinstance(value, kinds) and (not isinstance(value, (int, float)) or 0 <= value < math.inf)

    if {item.name for item in fields(Progress)} != found.keys():
        return False
    return (
        all(is_right(found[name], default) for name, default in asdict(Progress()).items())
        and found["updates"] >= found["epoch"] + found["update"]
        and found["best"].keys() == found["best_epoch"].keys()
        and all(isinstance(number, (int, float)) and math.isfinite(number) for number in found["best"].values())
        and all(isinstance(number, int) for number in found["best_epoch"].values())
    )


def way_on(path: Path) -> str:
    """Advice on what there is beside a last.pt that is damaged."""
    best = [beside.name for beside in sorted(path.parent.glob("best*.safetensors"))]
    return (
        f". {' and '.join(best)} beside it may be whole: start anew from them with --init-from {path.parent} and another --output"
        * bool(best)
    )


def find_resume(resume: str, output: Path) -> Path | None:
    """The file that `--resume` means; None for `auto` where there is nothing to resume yet."""
    path = output / "last.pt" if resume == "auto" else Path(resume)
    if os.path.isdir(path):
        path = path / "last.pt"
    if os.path.isfile(path):
        return path
    if resume == "auto":
        return None
    raise UsageError(f"--resume {resume}: there is no {path}")


def check_room(folder: Path, model: nn.Module, with_ema: bool, history: int) -> None:
    """Refuses to start a long run whose checkpoints cannot be written, with `history` of the last and of the best weights."""
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    # last.pt (weights, EMA, two moments) and the best files, each old and new at the moment of replacement; what is there already counts.
    files = (path for pattern in ("*", f"{HISTORY}/*") for path in folder.glob(pattern))
    there = sum(path.stat().st_size for path in files if path.suffix in (".pt", ".safetensors") and path.is_file())
    need = weights * (2 * (3 + with_ema) + 2 * (1 + history) * (1 + with_ema)) - there
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UsageError(
            f"{folder} has {free / 2**20:.0f} MiB free; the checkpoints need about {math.ceil(need / 2**20)} MiB. Give another --output"
        )
