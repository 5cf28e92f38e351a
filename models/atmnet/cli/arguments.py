"""Arguments that several commands take, said once."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from atm_triton.__main__ import device
from atm_triton.backend import default_device

from ..weights.reader import KINDS


def whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return parse


def image_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found or min(size := (int(found[1]), int(found[2] or found[1]))) < 3:
        raise argparse.ArgumentTypeError(f"must be such as 512, or 600x800 for height x width, at least 3 pixels, got {text!r}")
    return size


def add_model(parser: argparse.ArgumentParser, checkpoint: str) -> None:
    """``--checkpoint``, with what it means to leave it out, ``--model``, ``--ema`` and ``--swap``."""
    parser.add_argument("--checkpoint", required=not checkpoint, help=KINDS + (f" (default: {checkpoint})" if checkpoint else ""))
    add_model_name(parser)
    add_ema(parser)
    add_swap(parser)


def add_model_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="such as atmnet-t, where the checkpoint does not say")


def add_ema(parser: argparse.ArgumentParser) -> None:
    told = "take the averaged weights (default: of a published file, as the paper does)"
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, help=told)


def add_swap(parser: argparse.ArgumentParser) -> None:
    told = "the report of atm_triton.swap, of a model that was swapped, where the checkpoint does not say"
    parser.add_argument("--swap", metavar="REPORT", help=told)


def add_image_size(parser: argparse.ArgumentParser, help: str, default: tuple[int, int] | None = None) -> None:
    parser.add_argument("--img-size", type=image_size, default=default, metavar="SIZE", help=f"{help}: 512, or 600x800 for height x width")


def add_running(parser: argparse.ArgumentParser) -> None:
    """``--batch-size`` and ``--device``."""
    parser.add_argument("--batch-size", type=whole_number(1), default=16, metavar="N", help="images at once (default: 16)")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=device, default=default_device(), help="default: %(default)s")
