"""python -m atmnet tables: the paper's tables of costs."""

from __future__ import annotations

import argparse

from rich.console import Console

from ..costs import paper as tables

HELP = "the paper's tables 1 to 8: parameters and MACs, ours beside the paper's"


def number(text: str) -> int:
    if (value := int(text)) not in tables.NUMBERS:
        raise argparse.ArgumentTypeError(f"there are tables {', '.join(map(str, tables.NUMBERS))}, got {value}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("numbers", type=number, nargs="*", default=tables.NUMBERS, metavar="NUMBER", help="which (default: all)")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    console = Console()
    with console.status("counting ..."):  # a minute for all
        for table in tables.tables(args.numbers):
            console.print(table)
    return 0
