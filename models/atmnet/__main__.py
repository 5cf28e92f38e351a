"""Command line: ``python -m atmnet COMMAND``; the models without one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .terminal import print_any_name

COMMANDS = ("models", "tables", "predict", "serve", "average", "export", "convert", "offsets", "tune")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m atmnet", description="The networks of the Active Token Mixer.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"{__package__}.cli.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run, parser=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    print_any_name()
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments or ["models"])
    status: int = args.run(args, args.parser)
    return status


if __name__ == "__main__":
    sys.exit(main())
