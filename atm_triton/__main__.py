"""python -m atm_triton info | selftest | hub-kernel"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from . import __version__, backend_info
from .backend import default_device
from .hub_kernel import write_kernel
from .selftest import selftest


def device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text} is no device: {str(error).splitlines()[0]}") from error


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m atm_triton", description="The Active Token Mixer's operators on this machine.")
    parser.epilog = "Tuning is by the networks that need it: python -m atmnet tune."
    commands = parser.add_subparsers(dest="command", required=True)
    for name, description in (
        ("info", "say which path the operators take here, on what, and why"),
        ("selftest", "check every operator and its gradients here; exit status 1 if one is wrong"),
    ):
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("--device", type=device, help="such as cpu or cuda:1 (default: the GPU if there is one)")
    description = "write the operators as a repository of Hugging Face's Kernel Hub"
    command = commands.add_parser("hub-kernel", help=description, description=description)
    command.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    command.add_argument("--version", type=int, default=1, metavar="N", help="of the kernel (default: 1)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    if args.command == "hub-kernel":
        return _hub_kernel(args, parser, console)
    try:
        info = backend_info(args.device)
    except ValueError as error:
        parser.error(str(error))
    if args.command == "info":
        for field, value in {"atm_triton": __version__, **asdict(info)}.items():
            console.print(f"{field:<10} {value or 'not installed'}", highlight=False)
        return 0
    console.print(str(info), highlight=False)
    passed = selftest(args.device or default_device(), console)
    console.print("all operators are right" if passed else "some operators are wrong: please report this table with the output of info")
    return 0 if passed else 1


def _hub_kernel(args: argparse.Namespace, parser: argparse.ArgumentParser, console: Console) -> int:
    try:
        identifiers = write_kernel(args.out, args.version)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    console.print(f"{args.out}: {', '.join(identifiers)}", highlight=False, markup=False)
    command = f"kernels.get_local_kernel(pathlib.Path({str(args.out)!r}))"
    console.print(f"{command} loads it; the Hub takes it as a repository of the type kernel", highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
