"""python -m atmnet predict: the likeliest classes of images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from atm_triton.strict_json import dumps

from ..images import find_images
from ..prediction import Prediction, predict
from ..weights.opening import open_classifier
from .arguments import add_model, add_running, whole_number

HELP = "the likeliest classes of images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="files, folders, or patterns such as 'photos/**/*.jpg'")
    add_model(parser, "")
    add("--top", type=whole_number(1), default=5, metavar="N", help="classes per image (default: 5)")
    add("--json", metavar="FILE", help="write JSON there (-: to the terminal) rather than a table")
    add_running(parser)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    errors = Console(stderr=True)
    try:
        images, passed_over = find_images(args.images)
        if args.json not in (None, "-") and (Path(args.json).is_dir() or not Path(args.json).parent.is_dir()):
            raise FileNotFoundError(f"--json {args.json}: give a file in a folder that exists")
        model = open_classifier(args.checkpoint, args.model, args.ema).to(args.device)
        if not model.num_classes:
            raise ValueError(f"{args.checkpoint} has no classifier")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: of a device that is not there
        parser.error(str(error))
    if passed_over:
        print(f"passed over: {passed_over}", file=sys.stderr)
    predictions = predict(model, images, args.top, args.batch_size)
    try:
        results = list(track(predictions, "predicting", len(images), console=errors, transient=True))
    except ValueError as error:  # of a model that takes no such pictures
        parser.error(f"{args.checkpoint}: {error}")
    if args.json:
        text = dumps([as_json(result) for result in results], indent=2)
        try:
            print(text, flush=True) if args.json == "-" else Path(args.json).write_text(text + "\n")
        except OSError as error:
            errors.print(f"error: cannot write --json {args.json}: {error}", markup=False)
            return 1
    else:
        Console().print(as_table(results))
    read = [result for result in results if result.error is None]
    if read:
        load, network = mean(result.load_ms for result in read), mean(result.network_ms for result in read)
        errors.print(f"{len(read)} images · per image {load:.1f} ms to load, {network:.1f} ms in the network ({args.device})")
    for result in results:
        if result.error is not None:
            print(f"skipped: {result.image} ({result.error})", file=sys.stderr)
    return 0 if len(read) == len(results) else 1


def as_json(result: Prediction) -> dict[str, object]:
    """Return what there is to say: predictions and times, or the error."""
    fields = ("image", "error") if result.error is not None else ("image", "predictions", "load_ms", "network_ms")
    return {name: value for name, value in asdict(result).items() if name in fields}


def as_table(results: Sequence[Prediction]) -> Table:
    table = Table(box=None)
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("%", justify="right")
    table.add_column("load + network (ms)", justify="right")
    for result in results:
        for rank, guess in enumerate(result.predictions):
            image, times = (result.image, f"{result.load_ms:.1f} + {result.network_ms:.1f}") if rank == 0 else ("", "")
            cells = (image, guess.name, f"{100 * guess.probability:.1f}", times)
            table.add_row(*map(Text, cells), end_section=rank == len(result.predictions) - 1)  # in names, square brackets are no markup
    return table
