"""python -m atm_triton info | selftest | tune"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from dataclasses import asdict
from importlib import import_module

import torch
from rich.console import Console

from . import __version__, backend_info, tune
from .selftest import selftest
from .tuning import tables

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text} is no device: {str(error).splitlines()[0]}") from error


def resolution(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no resolution: give pixels as 224, or height and width as 800x1280")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m atm_triton", description="The Active Token Mixer's operators on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, description in (
        ("info", "say which path the operators take here, on what, and why"),
        ("selftest", "check every operator and its gradients here; exit status 1 if one is wrong"),
    ):
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("--device", type=device, help="such as cpu or cuda:1 (default: the GPU if there is one)")
    description = "find the fastest launch configurations for a model on this GPU, and keep them for it"
    add = (command := commands.add_parser("tune", help=description, description=description)).add_argument
    add("--model", required=True, help="atmnet-xt, -t, -s, -b, -l, or any timm model made of these operators")
    add("--resolution", type=resolution, nargs="+", required=True, metavar="PIXELS", help="such as 224 384 800x1280 (height x width)")
    add("--dtype", choices=DTYPES, default="bf16", help="16 bits by autocast, as in training (default: %(default)s)")
    add("--batch", type=positive, default=128, metavar="N", help="images at a time, as many as in use (default: %(default)s)")
    add("--inference", action="store_true", help="leave the gradients out")
    add("--force", action="store_true", help="measure again what has been measured with this Triton")
    add("--export", nargs="?", const="", metavar="FILE", help="also write a table to ship (default: atm_triton/tuning/configs/<gpu>.json)")
    command.set_defaults(parser=command)
    return parser


def tune_model(args: argparse.Namespace, console: Console) -> int:
    import timm

    with contextlib.suppress(ImportError):
        import_module("atmnet")  # where it is installed, timm then knows its models
    names = (args.model, args.model.lower().replace("-", "_"))
    name = next((name for name in names if timm.is_model(name)), "")
    if not name:
        near = timm.list_models(f"*{re.split('[-_]', args.model)[0]}*")[:5]
        args.parser.error(f"--model {args.model}: timm knows no such model" + (f"; it knows {', '.join(near)}" if near else ""))
    gpu = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if (slug := tables.gpu_slug(gpu)) is None:
        args.parser.error(f"there is no GPU here that torch {torch.__version__} can use: tune on the machine that will run the model")
    export = tables.SHIPPED / f"{slug}.json" if args.export == "" else args.export
    dtype, found = DTYPES[args.dtype], False
    model = timm.create_model(name).to(gpu).train(not args.inference)
    for height, width in args.resolution:
        console.print(f"{name}, {args.batch} x {height} x {width}, {args.dtype}", highlight=False)
        images = torch.zeros(args.batch, getattr(model, "in_chans", 3), height, width, device=gpu)
        try:
            with torch.autocast(gpu.type, dtype, enabled=dtype != torch.float32):
                result = tune(model, images, backward=not args.inference, force=args.force, export=export)
        except torch.OutOfMemoryError as error:
            args.parser.error(f"--batch {args.batch} at {height} x {width} does not fit this GPU: give a smaller one ({error})")
        except (OSError, ValueError) as error:  # a table that cannot be read or written
            args.parser.error(str(error))
        console.print(str(result), highlight=False)
        found |= bool(result.configs)
    if not found:
        console.print(f"{name} has none of the operators of this library: nothing was tuned")
    return 0 if found else 1


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    if args.command == "tune":
        return tune_model(args, console)
    try:
        info = backend_info(args.device)
    except ValueError as error:
        parser.error(str(error))
    if args.command == "info":
        for field, value in {"atm_triton": __version__, **asdict(info)}.items():
            console.print(f"{field:<10} {value or 'not installed'}", highlight=False)
        return 0
    console.print(str(info), highlight=False)
    passed = selftest(args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu"), console)
    console.print("all operators are right" if passed else "some operators are wrong: please report this table with the output of info")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
