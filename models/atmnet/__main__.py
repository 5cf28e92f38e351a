"""Command line: ``python -m atmnet`` prints the models, ``python -m atmnet tables`` the paper's tables with ours beside them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import timm
import torch
from rich.console import Console
from rich.table import Table

from . import tables
from .profile import macs
from .variants import VARIANTS

# Paper, table 1: parameters (M), multiply-adds at 224 x 224 (G), ImageNet-1K top-1 (%).
PAPER = dict(
    atmnet_xt=("15", "2.2", "79.7"),
    atmnet_t=("27", "4.0", "82.0"),
    atmnet_s=("39", "6.9", "83.1"),
    atmnet_b=("52", "10.1", "83.5"),
    atmnet_l=("76", "12.3", "83.8"),
)


def models(args: argparse.Namespace) -> None:
    """The models, their parameters and multiply-adds."""
    height, width = args.img_size[0], args.img_size[-1]
    table = Table(title=f"ATMNet at {height} x {width}", caption="paper: table 1, at 224 x 224, trained on ImageNet-1K")
    table.add_column("model", no_wrap=True)
    for heading in ("parameters (M)", "paper", "MACs (G)", "paper", "top-1 (%), paper"):
        table.add_column(heading, justify="right")
    for name in VARIANTS:
        with torch.device("meta"):
            model = timm.create_model(name)
        parameters = sum(p.numel() for p in model.parameters())
        paper_parameters, paper_macs, paper_top1 = PAPER[name]
        ours = f"{parameters / 1e6:.2f}", f"{macs(model, (height, width)) / 1e9:.3f}"
        table.add_row(name, ours[0], paper_parameters, ours[1], paper_macs, paper_top1)
    Console().print(table)


def print_tables(args: argparse.Namespace) -> None:
    """The paper's tables 2 to 7: parameters and multiply-adds, ours beside the paper's."""
    console = Console()
    with console.status("counting ..."):  # a minute for all
        for table in tables.tables(args.numbers):
            console.print(table)


def pixels(text: str) -> int:
    if (value := int(text)) < 3:
        raise argparse.ArgumentTypeError(f"must be at least 3, got {value}")
    return value


def number(text: str) -> int:
    if (value := int(text)) not in tables.NUMBERS:
        raise argparse.ArgumentTypeError(f"there are tables {', '.join(map(str, tables.NUMBERS))}, got {value}")
    return value


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m atmnet", description=models.__doc__)
    parser.add_argument("--img-size", type=pixels, nargs="+", default=[224], metavar="PIXELS", help="height and width, or one for both")
    parser.set_defaults(run=models)
    commands = parser.add_subparsers(title="other commands", metavar="")
    command = commands.add_parser("tables", help=print_tables.__doc__, description=print_tables.__doc__)
    command.add_argument("numbers", type=number, nargs="*", default=tables.NUMBERS, metavar="NUMBER", help="2 to 7 (default: all)")
    command.set_defaults(run=print_tables)
    args = parser.parse_args(argv)
    if len(args.img_size) > 2:
        parser.error(f"--img-size takes one or two numbers, got {args.img_size}")
    args.run(args)


if __name__ == "__main__":
    main()
