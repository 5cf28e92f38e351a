"""python -m atmnet tune: the fastest launch configurations for a model on this GPU."""

from __future__ import annotations

import argparse

import timm
import torch
from rich.console import Console

from atm_triton import tune
from atm_triton.backend import default_device
from atm_triton.tuning import tables

from ..tasks import input_shape
from ..variants import MODEL_NAMES, VIDEO, canonical_name, check_known
from .arguments import image_size, whole_number

HELP = "find the fastest launch configurations for a model on this GPU, and keep them for it"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help=f"{MODEL_NAMES} made of this library's operators")
    add("--resolution", type=image_size, nargs="+", required=True, metavar="PIXELS", help="such as 224 384 800x1280 (height x width)")
    add("--frames", type=whole_number(1), default=16, metavar="N", help="of a clip, of atmnet-*-video (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="bf16", help="16 bits by autocast, as in training (default: %(default)s)")
    add("--batch", type=whole_number(1), default=128, metavar="N", help="images at a time, as many as in use (default: %(default)s)")
    add("--inference", action="store_true", help="leave the gradients out")
    add("--force", action="store_true", help="measure again what has been measured with this Triton")
    add("--export", nargs="?", const="", metavar="FILE", help="also write a table to ship (default: atm_triton/tuning/configs/<gpu>.json)")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    name = canonical_name(args.model)
    try:
        check_known(name)
    except ValueError as error:
        parser.error(f"--model {error}")
    gpu = default_device()
    if (slug := tables.gpu_slug(gpu)) is None:
        parser.error(f"there is no GPU here that torch {torch.__version__} can use: tune on the machine that will run the model")
    export = tables.SHIPPED / f"{slug}.json" if args.export == "" else args.export
    dtype, found, console = DTYPES[args.dtype], False, Console(soft_wrap=True)
    options = dict(frames=args.frames) if name in VIDEO else {}
    model = timm.create_model(name, **options).to(gpu).train(not args.inference)
    for height, width in args.resolution:
        console.print(f"{name}, {args.batch} x {height} x {width}, {args.dtype}", highlight=False)
        images = torch.zeros(args.batch, *input_shape(model, (height, width)), device=gpu)
        try:
            with torch.autocast(gpu.type, dtype, enabled=dtype != torch.float32):
                result = tune(model, images, backward=not args.inference, force=args.force, export=export)
        except torch.OutOfMemoryError as error:
            parser.error(f"--batch {args.batch} at {height} x {width} does not fit this GPU: give a smaller one ({error})")
        except (OSError, ValueError) as error:  # a table that cannot be read or written
            parser.error(str(error))
        console.print(str(result), highlight=False)
        found |= bool(result.configs)
    if not found:
        console.print(f"{name} has none of the operators of this library: nothing was tuned")
    return 0 if found else 1
