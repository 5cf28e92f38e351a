"""python -m atmnet convert: any checkpoint as a folder of the Hub's layout."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from atm_triton.swapping.swap import reports_of

from ..tasks import CLASSIFICATION, about
from ..weights.opening import open_model
from ..weights.reader import KINDS, read_checkpoint
from ..weights.sharing import save_pretrained
from .arguments import add_ema, add_model_name, add_swap

HELP = "turn a checkpoint, the authors' or one trained here, into a folder of the Hugging Face Hub's layout"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=KINDS)
    parser.add_argument("out", metavar="OUT", help="a new or empty folder")
    add_model_name(parser)
    add_ema(parser)
    add_swap(parser)
    parser.add_argument("--license", metavar="NAME", help="for the model card, such as mit (default: that which timm names for the model)")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    out = Path(args.out)
    try:
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty")
        model: Any = open_model(args.checkpoint, args.model, args.ema, args.swap)
        if model.training_summary is None:
            model.training_summary = _origin(args.checkpoint, args.ema)
        save_pretrained(model, out, license=args.license)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    described = about(model)
    for_timm = described.task == CLASSIFICATION and not reports_of(model)
    console = Console(soft_wrap=True, markup=False)
    console.print(f"{out} · {described.name}, {len(described.classes)} classes\n", highlight=False)
    opened = f'timm.create_model("local-dir:{out}", pretrained=True)' if for_timm else f'atmnet.open_model("{out}")'
    console.print(f"import atmnet{', timm' * for_timm}\nmodel = {opened}", highlight=False)
    return 0


def _origin(checkpoint: str, ema: bool | None) -> dict[str, str] | None:
    """Which of the weights in a file of others are taken."""
    if not os.path.isfile(checkpoint):
        return None
    found = read_checkpoint(checkpoint, ema)
    return {"converted from": found.path.name, "weights": "averaged" if found.averaged else "not averaged"}
