"""python -m atmnet average: the mean of weights that one training went through."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from safetensors.torch import save as to_safetensors

from atm_triton.files import write_atomically

from ..weights.history import Kept, average, find_kept
from ..weights.reader import safetensors_metadata
from .arguments import whole_number

HELP = "the average of the best or the last weights that a training kept with --checkpoint-hist"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="RUN", help="the training's output folder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--best", type=whole_number(1), metavar="N", help="the weights of the N best evaluations")
    which.add_argument("--last", type=whole_number(1), metavar="N", help="the weights of the last N evaluations")
    add("--ema", action="store_true", help="of the averages over updates that the training kept beside")
    add("--out", type=Path, metavar="FILE", help="a .safetensors (default: average.safetensors in RUN)")


def choose(kept: list[Kept], best: int | None, last: int | None) -> list[Kept]:
    """Raises ValueError where fewer are there than are asked for."""
    count = best or last or 0
    if count > len(kept):
        raise ValueError(f"--{'best' if best else 'last'} {count}: there are the weights of {len(kept)} evaluations; give at most so many")
    return sorted(sorted(kept, key=lambda one: (one.value, one.epoch))[-count:] if best else kept[-count:], key=lambda one: one.epoch)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    out: Path = args.out or args.checkpoint / "average.safetensors"
    try:
        if out.suffix != ".safetensors":
            raise ValueError(f"--out {out}: the average is written as safetensors; give a name that ends so")
        chosen = choose(find_kept(args.checkpoint, args.ema), args.best, args.last)
        weights, meta = average([one.path for one in chosen])
        meta["averaged_epochs"] = [one.epoch for one in chosen]
        content = to_safetensors(weights, safetensors_metadata(weights, meta))
        write_atomically(out, lambda file: file.write(content))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    said = ", ".join(f"{one.epoch} ({one.metric} {one.value:.3f})" for one in chosen)
    print(f"{out}: the average of the weights of epochs {said}")
    program = "ade20k" if "head" in meta else "coco" if "detector" in meta else "imagenet"
    print(f"next: python -m atmnet_train.{program} --eval {shlex.quote(str(out))} --data-dir DIR")
    return 0
