"""Setting up Accelerate: device, precision, processes, trackers."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, ProjectConfiguration, parse_flag_from_env

from .errors import UsageError, environment_number
from .settings import setting

PRECISIONS = ("no", "fp16", "bf16")
TRACKERS = sorted(str(name) for name in LOGGER_TYPE_TO_CLASS)


@dataclass(frozen=True)
class RunSettings:
    """Running."""

    output: str = setting("", "everything the run writes", metavar="DIR", incidental=True, told="output/ and the model's name")
    resume: str | None = setting(
        None,
        "go on exactly from last.pt; auto: from the one in --output, if any",
        metavar="DIR|FILE|auto",
        incidental=True,
        told="start anew",
    )
    seed: int = setting(42, "of all random numbers", at_least=0, incidental=True)
    mixed_precision: str | None = setting(None, "the dtype of autocast", choices=PRECISIONS, told="as Accelerate is configured")
    compile: bool = setting(False, "torch.compile the model", "--torchcompile", incidental=True)
    tune: bool = setting(True, "on a GPU, look for faster launch configurations first", incidental=True)
    deterministic: bool = setting(False, "on a GPU too, the same results bit by bit: slower, not tuned")
    checkpoint_steps: int = setting(500, "write last.pt every N updates, besides every epoch", metavar="N", at_least=1, incidental=True)
    checkpoint_hist: int = setting(
        0, "keep the weights of the last N and of the best N evaluations, to average them", metavar="N", at_least=0, incidental=True
    )
    log_interval: int = setting(
        50, "print and log every N updates, and log in short epochs more often", metavar="N", at_least=1, incidental=True
    )
    report_to: str = setting("tensorboard", "the tracker", choices=(*TRACKERS, "none"), incidental=True)


@dataclass(frozen=True)
class EvaluationSettings:
    """Evaluation."""

    eval: str | None = setting(
        None,
        "evaluate this checkpoint and stop: an output folder, a .safetensors, a last.pt, a published .pth",
        metavar="CKPT",
        incidental=True,
        told="train",
    )


def available_cores() -> int:
    """Number of cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """The machine's cores, shared out over its processes; more than 8 seldom help one."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    processes = int(text) if text.isdecimal() else 1  # what is no number is refused with the launcher's other variables
    return min(8, max(1, available_cores() // max(1, processes)))


def check_tracker(settings: RunSettings) -> None:
    if settings.report_to != "none" and settings.report_to not in {str(name) for name in get_available_trackers()}:
        raise UsageError(f"--report-to {settings.report_to}: that package is not installed; install it or give --report-to none")


# Of Accelerate's launcher and configuration: what would change the run behind the flags' back, and what to do instead.
CONTRADICTIONS = {
    "ACCELERATE_USE_DEEPSPEED": "checkpoints here are not DeepSpeed's: launch with --use_fsdp --fsdp_version 2",
    "ACCELERATE_USE_MEGATRON_LM": "no model here is Megatron's: launch with --use_fsdp --fsdp_version 2",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "models here are spread by data alone: launch without it",
    "ACCELERATE_DYNAMO_BACKEND": "give --compile instead",
}


def check_environment() -> None:
    """Refuses what a launcher says and these programs cannot do, and what it cannot mean."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        environment_number(name, 0)
    for name, advice in CONTRADICTIONS.items():
        value = os.environ.get(name, "")
        if value.lower() not in ("", "0", "no", "false", "off"):
            raise UsageError(f"the environment says {name}={value}, of Accelerate's launcher or configuration: {advice}")


@contextmanager
def set_up() -> Iterator[None]:
    """Turn what Accelerate raises over variables of a launcher that mean nothing, or a device that is not there, into an error of ours."""
    try:
        yield
    except (ValueError, RuntimeError, ImportError) as error:
        given = ", ".join(name for name in sorted(os.environ) if name.startswith(("ACCELERATE_", "FSDP_", "LOCAL_RANK", "FORK_")))
        raise UsageError(f"Accelerate cannot be set up: {error}. Look at the launcher and its variables ({given or 'none'})") from error


def make_accelerator(settings: RunSettings, accumulate: int = 1) -> Accelerator:
    check_environment()
    # Accelerate takes torchrun's processes on a machine without an accelerator for single ones, unless it is told.
    with set_up():
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        device = PartialState(cpu=cpu).device  # joins the other processes
    # Accelerate's launcher and configuration speak through this variable; the flag has the last word.
    precision = settings.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower() or "no"
    if precision not in PRECISIONS:
        raise UsageError(f"the environment says ACCELERATE_MIXED_PRECISION={precision}: give --mixed-precision {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("fp16 does not train on a CPU: give --mixed-precision bf16 or --mixed-precision no")
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a check that costs time
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in fp32
    folder = Path(settings.output)
    with set_up():
        return Accelerator(
            cpu=cpu,
            mixed_precision=precision,
            # As a plugin: over a mere number, ACCELERATE_GRADIENT_ACCUMULATION_STEPS would have the last word.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulate),
            log_with=None if settings.report_to == "none" else settings.report_to,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs")),
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
        )


def start_trackers(accelerator: Accelerator, name: str, values: Mapping[str, Any], updates: int) -> None:
    """Tells them the settings. `updates`: those done before a resumption; TensorBoard drops what it has from after it."""
    config: dict[str, Any] = {key: value for key, value in values.items() if isinstance(value, (int, float, str, bool))}
    # TensorBoard's tracker would put them into a folder of their own, each start into another: they go into the run itself.
    boards = "tensorboard" in {str(kind) for kind in accelerator.log_with}
    accelerator.init_trackers(name, None if boards else config, {"tensorboard": {"purge_step": updates + 1}} if updates else {})
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard" and accelerator.is_main_process:
            from torch.utils.tensorboard.summary import hparams  # of a package that only this tracker needs

            for summary in hparams(config, {}):
                tracker.writer.file_writer.add_summary(summary)
