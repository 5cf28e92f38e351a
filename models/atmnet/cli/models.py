"""python -m atmnet models: the five variants, beside the paper's table 1."""

from __future__ import annotations

import argparse

from rich.console import Console

from ..tables import variants

HELP = "the models, their parameters and multiply-adds"


def pixels(text: str) -> int:
    if (value := int(text)) < 3:
        raise argparse.ArgumentTypeError(f"must be at least 3, got {value}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--img-size", type=pixels, nargs="+", default=[224], metavar="PIXELS", help="height and width, or one for both")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if len(args.img_size) > 2:
        parser.error(f"--img-size takes one or two numbers, got {args.img_size}")
    Console().print(variants((args.img_size[0], args.img_size[-1])))
    return 0
