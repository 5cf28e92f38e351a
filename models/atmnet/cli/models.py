"""python -m atmnet models: the five variants, beside the paper's table 1, and those of videos."""

from __future__ import annotations

import argparse

from rich.console import Console

from ..costs.paper import variants
from ..costs.videos import video_costs
from .arguments import add_image_size

HELP = "the models, their parameters and MACs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_size(parser, "of the MACs (default: 224)", (224, 224))


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    console = Console()
    console.print(variants(args.img_size))
    console.print(video_costs(args.img_size))
    return 0
