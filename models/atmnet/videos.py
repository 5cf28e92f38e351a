"""Videos: which files they are, and their frames as upright images, in order or at given times. FFmpeg reads them, by PyAV."""

from __future__ import annotations

import gc
import os
import re
import stat
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .images import LONGEST, TURNS, describe

# That tell videos, in lower case; not .ts, which is TypeScript too.
# fmt: off
ENDINGS = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m1v", ".m2ts", ".m2v", ".m4v",
    ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".vob", ".webm", ".wmv",
})
# fmt: on

# EXIF's orientation by the signs of the display matrix's a, b, c, d: it shows (x, y) of the file at (a x + c y, b x + d y).
ORIENTATIONS = {
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
AHEAD = 2.0  # seconds for which decoding on takes less than to look for a keyframe
TOLD = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")  # how long a stream of Matroska or WebM is, which has a tag for it alone
REORDERING = ("h264", "hevc")
LAST = 10**6  # seconds, after the end of any video
EARLY = 1.0  # seconds before its end at which a video may stop: headers are not that exact


def collect_decoders() -> None:
    """Free what is left of videos: streams and their file refer to each other, so that garbage collection alone finds them. In a copy of
    this process, such as a data worker, it would wait forever for the threads of a decoder, which the copy has not."""
    if "av" in sys.modules:
        gc.collect()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=collect_decoders)


class VideoError(ValueError):
    """A video that cannot be read, or not to its end; the message says why in one line."""


def is_video(path: str | os.PathLike[str]) -> bool:
    """Tell by the ending."""
    return os.path.splitext(path)[1].lower() in ENDINGS


def library() -> Any:
    """PyAV, which not everybody has.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install 'atm-triton[video]'") from error
    return av


class Frame(NamedTuple):
    time: float  # seconds after the first frame
    image: Image.Image


@dataclass(frozen=True)
class Video:
    """A video file, of ``open_video``. It is open only while frames are read, and no more than a few of them are held.

    Attributes:
        size: Width and height of its frames, upright.
        fps: Frames per second on average; None where the file does not say.
        duration: Seconds; None where the file does not say.
        length: Number of frames, as the file says or else as duration and fps have it; None where it says neither.
        start: Seconds on the file's own clock at which the first frame is shown.
    """

    path: str
    size: tuple[int, int]
    fps: Fraction | None
    duration: float | None
    length: int | None
    start: float

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """The frames in order, or every so many-th of them from the first on, at their own times.

        Raises:
            VideoError: the file is damaged, after the frames before the damage.
        """
        number, time = -1, 0.0
        try:
            with _opened(self.path) as (container, stream):
                upright = _Upright(stream)
                for number, frame in enumerate(_decoded(container, stream)):
                    time = number / float(self.fps or 1) if frame.time is None else frame.time - self.start
                    if number % every == 0:
                        yield Frame(time, upright(frame))
                whole = _own_duration(container, stream)
                if whole is not None and time + EARLY < whole and not 0 < stream.frames <= number + 1:
                    raise VideoError(f"it ends at {time:.1f} of {whole:.1f} seconds")
        except VideoError as error:
            raise VideoError(f"after {number + 1} frames: {error}" if number >= 0 else str(error)) from error

    def at(self, times: Iterable[float]) -> Iterator[Frame]:
        """The frame nearest to each time in seconds, decoded from the keyframe before it on; quickest where the times ascend.

        Raises:
            VideoError: the file is damaged, or ends before a time that it should have; or its frames have no times.
        """
        with _opened(self.path) as (container, stream):
            whole = None if stream.frames else _own_duration(container, stream)  # of those with an index, what is missing is seen
            before, after, upright = None, None, _Upright(stream)
            frames: Iterator[Any] = iter(())
            for time in times:
                wanted = self.start + time
                if before is None or wanted < before.time or (after is not None and wanted > after.time + AHEAD):
                    frames = self._from(container, stream, wanted)
                    before = after = next(frames)
                while after is not None and after.time < wanted:
                    before, after = after, next(frames, None)
                if after is None and whole is not None and before.time - self.start + EARLY < whole:
                    raise VideoError(f"it ends at {before.time - self.start:.1f} of {whole:.1f} seconds")
                nearest = before if after is None or wanted - before.time <= after.time - wanted else after
                yield Frame(nearest.time - self.start, upright(nearest))

    def middle(self) -> Image.Image:
        """The frame in the middle, which stands for the whole; raises as ``at``."""
        return next(self.at([(self.duration or 0) / 2])).image

    def _from(self, container: Any, stream: Any, wanted: float) -> Iterator[Any]:
        """Frames from one on that is not after the wanted time, if there is any: some formats are entered too late."""
        for earlier in (0, 4 * AHEAD):
            container.seek(int(max(self.start, wanted - earlier) / stream.time_base), stream=stream)
            frames = _decoded(container, stream)
            first = next(frames, None)
            if first is not None and first.time is None:
                raise VideoError("its frames have no times: it can be read in order alone")
            if first is not None and first.time <= wanted:
                yield first
                yield from frames
                return
        with _opened(self.path) as (container, stream):
            yield from _decoded(container, stream)


def open_video(path: str | os.PathLike[str]) -> Video:
    """What there is to know of a video before its frames are read.

    Raises:
        ImportError: PyAV is not installed.
        VideoError: it is none, or none that can be read.
    """
    with _opened(path) as (container, stream):
        first = next(_decoded(container, stream), None)
        if first is None:
            raise VideoError("it has no frame")
        size = _Upright(stream)(first).size
        if max(size) > LONGEST * min(size):
            raise VideoError(f"it is {size[0]} x {size[1]} pixels: more than {LONGEST} times as long as it is wide")
        fps, start = _fraction(stream.average_rate), first.time or 0.0
        duration = _duration(container, stream, start, 1 / float(fps or 1))
        length = stream.frames or (round(duration * fps) if duration and fps else None)
        return Video(os.fspath(path), size, fps, duration, length, start)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """The file, and of its streams the video that players would show.

    Raises:
        VideoError: whatever goes wrong with it, here or within the ``with`` block.
    """
    av = library()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise VideoError("it is not a regular file")  # a pipe would be waited for without end
        if not os.path.getsize(path):
            raise VideoError("it is empty")
        with av.open(f"file:{os.fspath(path)}") as container:  # from a file:, FFmpeg follows no link into the network
            stream = container.streams.best("video")
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:  # the cover of a record
                kinds = sorted({other.type for other in container.streams if other is not stream})
                raise VideoError(f"there is no video in it, but {' and '.join(kinds) or 'nothing'}")
            stream.thread_type = "AUTO"
            yield container, stream
    except VideoError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or describe(error)
        raise VideoError(f"FFmpeg says: {said}" if isinstance(error, av.FFmpegError) else said) from error


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    whole, places = True, deque[int]()
    guessed = _guessed(container, stream)
    for packet in container.demux(stream):
        whole = whole and not packet.is_corrupt
        if packet.size and packet.dts is not None:
            places.append(packet.dts)
        for frame in packet.decode():
            if guessed and places:
                frame.pts = places.popleft()
            yield frame
    if not whole:
        raise VideoError("a part of the file is missing or damaged")


def _guessed(container: Any, stream: Any) -> bool:
    """AVI says when frames are decoded, not shown, which FFmpeg guesses wrongly of these. As many are shown by then, in their order."""
    return bool(container.format.name == "avi" and stream.codec_context.name in REORDERING)


class _Upright:
    """Makes frames of a stream images in RGB with square pixels, turned and mirrored as the file says."""

    def __init__(self, stream: Any) -> None:
        self.ratio = float(_fraction(stream.sample_aspect_ratio) or 1)
        self.reformatter = library().video.reformatter.VideoReformatter()  # one of its own for each frame would be set up each time

    def __call__(self, frame: Any) -> Image.Image:
        width = max(1, round(frame.width * self.ratio))
        image: Image.Image = self.reformatter.reformat(frame, width, frame.height, "rgb24", threads=1).to_image()
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return image
        (a, b), (c, d) = (np.frombuffer(bytes(matrix), np.int32).reshape(3, 3)[:2, :2] / 2**16).round().astype(int).tolist()
        turn = TURNS.get(ORIENTATIONS.get((a, b, c, d), 1))
        return image if turn is None else image.transpose(turn)


def _fraction(value: Any) -> Fraction | None:
    """A number of PyAV's, whose own type changes from version to version; None where it is not set."""
    return Fraction(value.numerator, value.denominator) if value else None


def _duration(container: Any, stream: Any, start: float, last: float) -> float | None:
    """Seconds until the last frame ends, or those of the header where it has many more: then the end is missing."""
    said, found = _own_duration(container, stream), _end(container, stream, last)
    if found is None or found <= start:  # of a stream whose clock starts anew
        return _whole_duration(container) if said is None else said
    return said if said is not None and said > found - start + EARLY else found - start


def _end(container: Any, stream: Any, last: float) -> float | None:
    """Seconds on the file's own clock at which the last frame ends, by packets, which are not decoded: headers are far off where the rate
    varies. ``last``: what a frame lasts where its packet does not say."""
    found = max(_ends(container, stream, LAST, last) or _ends(container, stream, 0, last), default=None)
    # Where the last packet alone was found: it may not be of the last frame.
    return None if found is None else max([found, *_ends(container, stream, found - AHEAD, last)])


def _ends(container: Any, stream: Any, place: float, last: float) -> list[float]:
    """Ends of the frames after a place in seconds, or after the keyframe before it."""
    ends, guessed = [], _guessed(container, stream)
    with suppress(library().FFmpegError):  # who reads the frames is told of it
        container.seek(int(place / stream.time_base), stream=stream)
        for packet in container.demux(stream):
            shown = packet.dts if guessed or packet.pts is None else packet.pts
            if packet.size and shown is not None:
                ends.append(float(shown * stream.time_base) + (float((packet.duration or 0) * stream.time_base) or last))
    return ends


def _own_duration(container: Any, stream: Any) -> float | None:
    """The video's, not that of a longer sound beside it; None where the file says only how long all is."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if told := TOLD.fullmatch(stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = map(float, told.groups())
        if (length := 3600 * hours + 60 * minutes + seconds) > 0:
            return length - max(0.0, float((stream.start_time or 0) * stream.time_base))
    return _whole_duration(container) if len(container.streams) == 1 else None


def _whole_duration(container: Any) -> float | None:
    return container.duration / library().time_base if container.duration else None
