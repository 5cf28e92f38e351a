"""Annotated videos: pictures of what was found on frames, as a video."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from atm_triton.files import replaced

from ..drawing.objects import LEGIBLE, LONGEST
from ..drawing.text import Entry, with_strip
from ..videos import library

ENCODERS = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {"b": "8M"}}  # the first that FFmpeg was built with
TICKS = 60_000  # a second: whole for the usual frame rates, and as many as MPEG-4 takes
BT_709 = 1  # the colours of HD, in FFmpeg's numbering of matrices, primaries and transfers


class AnnotatedVideo:
    """An MP4 without sound, a file of its name when closed. All pictures get the size of the first, which is made even."""

    def __init__(self, path: Path, strip: bool) -> None:
        self.av, self.path, self.strip = library(), path, strip
        self.files = ExitStack()
        self.container: Any = None
        self.stream: Any = None
        self.size: tuple[int, int] | None = None
        self.last = -1

    def write(self, picture: Image.Image, legend: Sequence[Entry], time: float) -> None:
        picture = legible(picture)
        self.size = self.size or picture.size
        if picture.size != self.size:
            picture = ImageOps.pad(picture, self.size)
        page = with_strip(picture, legend) if self.strip else picture
        page = page.crop((0, 0, max(2, page.width // 2 * 2), max(2, page.height // 2 * 2)))  # 4:2:0 has half as many colours along a side
        if self.container is None:
            self._open(page.size)
        frame = self.av.VideoFrame.from_image(page).reformat(format="yuv420p", dst_colorspace="ITU709")
        self.last = max(self.last + 1, round(time * TICKS))  # two frames at one time are none to players
        frame.pts, frame.time_base = self.last, Fraction(1, TICKS)
        self.container.mux(self.stream.encode(frame))

    def _open(self, size: tuple[int, int]) -> None:
        encoder = next(name for name in ENCODERS if name in self.av.codecs_available)
        partial = self.files.enter_context(replaced(self.path))
        self.container = self.files.enter_context(self.av.open(f"file:{partial}", "w", format="mp4"))
        self.stream = self.container.add_stream(encoder, rate=30, options=ENCODERS[encoder])  # the times count, whatever the rate
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = "yuv420p"
        context = self.stream.codec_context
        context.time_base = Fraction(1, TICKS)
        context.colorspace = context.color_primaries = context.color_trc = BT_709

    def close(self) -> None:
        with self.files:
            if self.container is not None:
                self.container.mux(self.stream.encode())


def legible(picture: Image.Image) -> Image.Image:
    """A small picture enlarged, a very large one made smaller."""
    longer = max(picture.size)
    if longer > LONGEST:
        return ImageOps.contain(picture, (LONGEST, LONGEST))
    times = max(1, LEGIBLE // longer)
    return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
