"""python -m atmnet predict: what a model finds on images and videos."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..images import find_images
from ..predicting import predictor
from ..predicting.folder import FILES, Folder
from ..predicting.many import Outcome, predict_files
from ..predicting.options import Options
from ..predicting.writing import CannotWrite, CsvFile, JsonFile
from ..tasks import CLASSIFICATION, DETECTION, SEGMENTATION, About, about
from ..videos import ENDINGS, VideoError, is_video, library, open_video
from ..weights.opening import open_model
from . import progress
from .arguments import add_model, add_running, whole_number

HELP = "what a model finds on images and videos: classes, the class of each pixel, or objects"
UNFOLDED = 10_000  # columns of a table that goes to a file or pipe, so that no path is broken
AT_ONCE = 200  # rows of a table on the terminal
OF_FRAMES = ("frame", "time")  # columns of a table of videos


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="images and videos: files, folders, or patterns such as 'photos/**/*.jpg'")
    add_model(parser, "")
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write predictions.json and .csv there; of a segmenter also pictures/ and labels/ (PNGs of 1 for the first class, and so on); "
        "of a detector pictures/ and detections.json, COCO's results for images.json; of every video, an annotated one in pictures/, "
        "without sound",
    )
    add("--every", type=whole_number(1), default=1, metavar="N", help="of a video, look at every N-th frame (default: 1)")
    add("--json", metavar="FILE", help="write JSON there (-: to the terminal) rather than a table")
    add("--csv", metavar="FILE", help="write a row per class or object there (-: to the terminal) rather than a table")
    add(
        "--top-k", "--top", dest="top", type=whole_number(1), default=5, metavar="N", help="classes per image, of a classifier (default: 5)"
    )
    add(
        "--threshold",
        type=float,
        metavar="P",
        help="leave out what is less probable: classes, objects (default: 0.3; detections.json has all), the class of a pixel",
    )
    add(
        "--tile",
        type=whole_number(1),
        metavar="PIXELS",
        help="of a segmenter: take images in their own size, in windows of so many pixels a side, for those that do not fit the memory",
    )
    add("--overlap", type=whole_number(0), metavar="PIXELS", help="of neighbouring windows (default: a quarter of --tile)")
    add("--multi-scale", action="store_true", help="of a segmenter: the mean over six scales from 0.5 to 1.75, each also mirrored")
    add_running(parser)


class Output(Protocol):
    def write(self, number: int, outcome: Outcome) -> None: ...
    def close(self) -> None: ...


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    errors = Console(stderr=True)
    try:
        options = Options(args.top, args.threshold, args.tile, args.overlap, args.multi_scale)
        images, passed_over = find(args.images)
        check_files(args)
        model = open_model(args.checkpoint, args.model, args.ema, args.swap).to(args.device)
        described = about(model)
        way = predictor(model, options)
        if way.whole_videos and args.every > 1:
            raise ValueError(f"--every {args.every} is of models of images: {described.name} takes a video for one thing")
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # RuntimeError: of a device that is not there
        parser.error(str(error))
    if passed_over:
        print(f"passed over: {passed_over}", file=sys.stderr)
    # Others see images in sizes of their own, and a video has many views.
    batch_size = args.batch_size if described.task == CLASSIFICATION and not way.whole_videos else 1
    videos = 0 if way.whole_videos else sum(map(is_video, images))  # that are looked at frame by frame
    tally = Tally("video" if way.whole_videos else "image" if not videos else "frame" if videos == len(images) else "picture")
    columns = (*OF_FRAMES, *way.columns) if videos else way.columns
    stopped = False
    try:
        with ExitStack() as files:
            outputs: list[Output] = [files.enter_context(closing(output)) for output in outputs_of(args, described, columns, images)]
            found = predict_files(way, images, batch_size, args.every)
            total = len(images) if not videos else count(images, args.every) if errors.is_terminal else None
            for number, outcome in enumerate(progress.images(found, "predicting", total, errors, f"{tally.noun}s")):
                for output in outputs:
                    output.write(number, outcome)
                tally.add(outcome)
    except CannotWrite as error:
        errors.print(f"error: {error}", markup=False, soft_wrap=True)
        return 1
    except ValueError as error:  # of a model that takes no such pictures
        parser.error(f"{args.checkpoint}: {error}")
    except KeyboardInterrupt:
        stopped = True
    if tally.read:
        out = f" · {args.out}" if args.out else ""
        errors.print(f"{tally.summary(args.device)}{out}", markup=False, soft_wrap=True)
    for line in tally.skipped():
        print(f"skipped: {line}", file=sys.stderr)
    if stopped:
        print("stopped: what was found so far is written", file=sys.stderr)
        return 128 + signal.SIGINT
    return 1 if tally.failed else 0


@dataclass
class Tally:
    """What was looked at, and what could not be."""

    noun: str
    read: int = 0
    load_ms: float = 0.0
    network_ms: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)  # by file, its first error
    more: Counter[str] = field(default_factory=Counter)  # by file, frames that failed after
    began: float = field(default_factory=time.perf_counter)

    def add(self, outcome: Outcome) -> None:
        if outcome.error is None:
            self.read += 1
            self.load_ms += outcome.load_ms
            self.network_ms += outcome.network_ms
        elif outcome.image in self.failed:
            self.more[outcome.image] += 1
        else:
            self.failed[outcome.image] = f"{outcome.name} ({outcome.error})"

    def skipped(self) -> list[str]:
        return [line + (f" and {self.more[image]} more of it" if self.more[image] else "") for image, line in self.failed.items()]

    def summary(self, device: object) -> str:
        noun, read = self.noun, self.read
        return (
            f"{read} {noun}{'' if read == 1 else 's'} · "
            f"per {noun} {self.load_ms / read:.1f} ms to load, {self.network_ms / read:.1f} ms in the network ({device}) · "
            f"{read / (time.perf_counter() - self.began):.3g} {noun}s/s"
        )


def find(places: Sequence[str]) -> tuple[list[Path], str]:
    """Images and videos, and what was passed over: videos too where there is no PyAV, unless they are named.

    Raises:
        FileNotFoundError: a place names none.
        ImportError: there is no PyAV, and a video is named, or nothing else is there.
    """
    files, passed_over = find_images(places, ENDINGS)
    videos = [file for file in files if is_video(file)]
    try:
        if videos:
            library()
    except ImportError as error:
        if len(videos) == len(files) or not {Path(place) for place in places}.isdisjoint(videos):
            raise
        left = f"{len(videos)} video{'' if len(videos) == 1 else 's'} ({error})"
        return [file for file in files if not is_video(file)], f"{passed_over}, {left}" if passed_over else left
    return files, passed_over


def count(files: Sequence[Path], every: int) -> int | None:
    """Number of images and frames as far as the files say it."""
    total = 0
    for file in files:
        try:
            length = open_video(file).length if is_video(file) else every
        except VideoError:
            length = 1  # its error
        if length is None:
            return None
        total += -(-length // every)
    return total


def check_files(args: argparse.Namespace) -> None:
    """Refuse what cannot be written before anything takes time."""
    for flag, path in (("--json", args.json), ("--csv", args.csv)):
        if path not in (None, "-") and (Path(path).is_dir() or not Path(path).parent.is_dir()):
            raise FileNotFoundError(f"{flag} {path}: give a file in a folder that exists")
    if args.json == args.csv == "-":
        raise ValueError("--json - and --csv - would write into each other: give one of them a file")
    own = [args.out / name for name in FILES] if args.out is not None else []
    whole = Counter(os.path.realpath(path) for path in [args.json, args.csv, *own] if path not in (None, "-"))
    if twice := [path for path, count in whole.items() if count > 1 and (not os.path.exists(path) or os.path.isfile(path))]:
        raise ValueError(f"{twice[0]}: --json, --csv and --out would write into each other: give each a file of its own")
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise FileExistsError(f"--out {args.out}: there is a file of this name: give a folder")


def outputs_of(args: argparse.Namespace, described: About, columns: Sequence[str], images: Sequence[Path]) -> list[Any]:
    outputs: list[Any] = []
    if args.json:
        outputs.append(JsonFile(args.json))
    if args.csv:
        outputs.append(CsvFile(args.csv, columns))
    if args.out:
        outputs.append(Folder(args.out, described, columns, images))
    return outputs or [Printed(described.task)]


class Printed:
    """Tables on the terminal, of some images each."""

    def __init__(self, task: str) -> None:
        self.task, self.rows = task, 0
        self.console = Console()
        if not self.console.is_terminal:
            self.console.width = UNFOLDED
        self.table = self._table()

    def _table(self) -> Table:
        table = Table(box=None)
        table.add_column("image", overflow="fold")
        table.add_column("class")
        table.add_column("%", justify="right")
        table.add_column("load + network (ms)", justify="right")
        return table

    def write(self, number: int, outcome: Outcome) -> None:
        rows = [] if outcome.error is not None else outcome.result.rows()
        if outcome.error is None and not rows:
            rows = [{"name": "nothing"}]
        for rank, row in enumerate(rows):
            image, times = (outcome.name, f"{outcome.load_ms:.1f} + {outcome.network_ms:.1f}") if rank == 0 else ("", "")
            share = row.get({CLASSIFICATION: "probability", SEGMENTATION: "share", DETECTION: "score"}[self.task])
            cells = (image, row["name"], "" if share is None else f"{100 * share:.1f}", times)
            self.table.add_row(*map(Text, cells), end_section=rank == len(rows) - 1)  # in names, square brackets are no markup
        self.rows += len(rows)
        if self.rows >= AT_ONCE:
            self.close()
            self.table, self.rows = self._table(), 0

    def close(self) -> None:
        if self.rows:
            self.console.print(self.table)
