"""python -m atmnet convert: a published classifier as a folder that timm and the Hub read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from ..weights.opening import open_classifier
from ..weights.reader import read_checkpoint
from .arguments import add_ema, add_model_name

HELP = "turn the authors' file of a classifier into a folder of the Hugging Face Hub's layout, which timm reads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("published", metavar="published.pth", help="of the authors")
    parser.add_argument("out", metavar="OUT", help="a new or empty folder")
    add_model_name(parser)
    add_ema(parser)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    out = Path(args.out)
    try:
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty")
        weights = _weights(args.published, args.ema)
        model: Any = open_classifier(args.published, args.model, args.ema)
        model.training_summary = {"converted from": Path(args.published).name, "weights": weights}
        model.save_pretrained(out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    console = Console(soft_wrap=True, markup=False)
    console.print(f"{out} · {model.pretrained_cfg['architecture']}, {model.num_classes} classes · {weights}\n", highlight=False)
    console.print(f'import atmnet, timm\nmodel = timm.create_model("local-dir:{out}", pretrained=True)', highlight=False)
    return 0


def _weights(published: str, ema: bool | None) -> str:
    """Which of a file's weights are taken.

    Raises:
        ValueError: it is no classifier of the authors.
    """
    found = read_checkpoint(published, ema)
    if not found.published or "head" in found.meta:
        raise ValueError(f"{published} is no classifier of the authors: save_pretrained writes the folders of other models")
    return "averaged" if found.averaged else "not averaged"
