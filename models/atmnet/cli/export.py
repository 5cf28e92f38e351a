"""python -m atmnet export: a classifier or segmenter for use without this library."""

from __future__ import annotations

import argparse
import time

from rich.console import Console

from atm_triton.strict_json import loads

from ..exporting import FORMATS, export
from ..tasks import SEGMENTATION, about
from ..weights.opening import open_model
from .arguments import add_image_size, add_model

HELP = "write a classifier or segmenter as a torch.export program, an AOTInductor package or ONNX"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--format", required=True, choices=list(FORMATS))
    add("--out", required=True, metavar="FILE", help="ends in .onnx for onnx, else in .pt2")
    add_model(parser, "fresh weights of --model")
    add_image_size(parser, "that the file must take (default: the model's)")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    console = Console(soft_wrap=True, markup=False)  # square brackets are of file names
    began = time.perf_counter()
    try:
        model = open_model(args.checkpoint, args.model, args.ema, args.swap)
        described = about(model)
        own_size = (described.size[0], described.size[0]) if described.task == SEGMENTATION else None
        with console.status("exporting ..."):
            done = export(model, args.out, args.format, args.img_size or own_size, described.classes)
    except (OSError, ValueError, ImportError, RuntimeError) as error:  # RuntimeError: a file that differs, a compiler that is not there
        parser.error(str(error))
    console.print(
        f"{done.path} · {done.path.stat().st_size / 2**20:.1f} MiB · any batch, images from {done.smallest[0]} x {done.smallest[1]} · "
        f"differs from the model by {done.difference:.1e} of the largest logit at most · {time.perf_counter() - began:.0f} s",
        highlight=False,
    )
    mean, std = ([round(value, 4) for value in loads(done.metadata[name])] for name in ("mean", "std"))
    in_chans, frames = loads(done.metadata["input_size"])[0], done.metadata.get("frames")
    what = f"images [B, {in_chans}, H, W]" if frames is None else f"clips [B, {in_chans}, {frames}, H, W]"
    console.print(f"\nIt takes {what} less their mean {mean}, over their deviation {std}:\n", highlight=False)
    console.print(FORMATS[args.format].usage.format(path=done.path), highlight=False)
    return 0
