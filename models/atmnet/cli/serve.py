"""python -m atmnet serve: a page in the browser that shows what a model makes of a photo."""

from __future__ import annotations

import argparse

from rich.console import Console

from ..weights.opening import open_model
from .arguments import add_device, add_model, whole_number

HELP = "a page in the browser: drop a photo, see what the model finds, and where its tokens look"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "")
    add = parser.add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="default: 127.0.0.1, seen from this machine alone; 0.0.0.0 shows it to whoever reaches the machine",
    )
    add("--port", type=whole_number(0), default=7860, metavar="N", help="default: 7860; 0 for a free one")
    add_device(parser)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        from ..serving.server import listen, serve  # takes seconds, and not everybody has it
    except ImportError as error:
        parser.error(f"the page needs Gradio: pip install 'atm-triton[serve]' ({error})")
    from ..serving.showing import Showing

    try:
        at = listen(args.host, args.port)
        showing = Showing(open_model(args.checkpoint, args.model, args.ema, args.swap).to(args.device))
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: of a device that is not there
        parser.error(str(error))
    console = Console(markup=False, highlight=False, soft_wrap=True)
    host, port = at.getsockname()[:2]
    console.print(f"{showing.described.name} at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)")
    serve(showing, at)
    return 0
