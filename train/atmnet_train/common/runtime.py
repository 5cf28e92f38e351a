"""Setting up Accelerate: device, precision, processes, trackers."""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, parse_flag_from_env

from .errors import UsageError

TRACKERS = sorted(str(name) for name in LOGGER_TYPE_TO_CLASS)


def add_runtime_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    group.add_argument("--output", metavar="DIR", help="everything the run writes (default: output/MODEL)")
    group.add_argument("--resume", metavar="DIR|FILE|auto", help="go on exactly from last.pt; auto: from the one in --output, if any")
    group.add_argument("--seed", type=int, default=42)
    group.add_argument(
        "--workers", type=int, default=default_workers(), help="data-loading workers per process (default here: %(default)s)"
    )
    group.add_argument("--mixed-precision", choices=("no", "fp16", "bf16"), help="default: as Accelerate is configured")
    group.add_argument("--compile", "--torchcompile", action="store_true", help="torch.compile the model")
    group.add_argument("--no-tune", dest="tune", action="store_false", help="on a GPU, do not look for faster launch configurations first")
    group.add_argument("--deterministic", action="store_true", help="on a GPU too, the same results bit by bit: slower, not tuned")
    group.add_argument("--checkpoint-steps", type=int, default=500, metavar="N", help="write last.pt every N updates, besides every epoch")
    group.add_argument("--log-interval", type=int, default=50, metavar="N", help="print and log every N updates")
    group.add_argument("--report-to", default="tensorboard", choices=[*TRACKERS, "none"], help="the tracker (default: tensorboard)")


def default_workers() -> int:
    """The machine's cores, shared out over its processes; more than 8 seldom help one."""
    return min(8, max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def check_runtime_flags(args: argparse.Namespace) -> None:
    for name, least in (("workers", 0), ("seed", 0), ("checkpoint_steps", 1), ("log_interval", 1)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name)}: it must be at least {least}")
    if args.report_to != "none" and args.report_to not in {str(name) for name in get_available_trackers()}:
        raise UsageError(f"--report-to {args.report_to}: that package is not installed; install it or give --report-to none")


def make_accelerator(args: argparse.Namespace, accumulate: int = 1) -> Accelerator:
    # Accelerate takes torchrun's processes on a machine without an accelerator for single ones, unless it is told.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    device = PartialState(cpu=cpu).device  # joins the other processes
    # Accelerate's launcher and configuration speak through this variable; the flag has the last word.
    precision = args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("fp16 does not train on a CPU: give --mixed-precision bf16 or --mixed-precision no")
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a check that costs time
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in fp32
    folder = Path(args.output)
    return Accelerator(
        cpu=cpu,
        mixed_precision=precision,
        gradient_accumulation_steps=accumulate,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs")),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )


def start_trackers(accelerator: Accelerator, name: str, args: argparse.Namespace, updates: int) -> None:
    """`updates`: those done before a resumption; TensorBoard drops what it has from after it."""
    config: dict[str, Any] = {key: value for key, value in vars(args).items() if isinstance(value, (int, float, str, bool))}
    accelerator.init_trackers(name, config, {"tensorboard": {"purge_step": updates}} if updates else {})
