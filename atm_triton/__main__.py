"""python -m atm_triton info | selftest"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

import torch
from rich.console import Console

from . import __version__, backend_info
from .backend import default_device
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
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
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


if __name__ == "__main__":
    sys.exit(main())
