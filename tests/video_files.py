"""Video files of odd kinds, written with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

# The matrix of a track's header, as a b c d, by EXIF's orientation.
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def greys(number: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """Images that ``number_of`` tells apart."""
    return [Image.new("RGB", size, (10 + 4 * place,) * 3) for place in range(number)]


def number_of(image: Image.Image) -> int:
    return round((float(np.asarray(image).mean()) - 10) / 4)


def write_video(path: Path, images: Sequence[Image.Image], times: Iterable[float] | None = None, **options: Any) -> Path:
    """Images at times in seconds, by default ten a second. ``options`` are the encoder's, but for ``ticks``: a second of the file."""
    times = [place / 10 for place in range(len(images))] if times is None else times
    ratio, codec, ticks = options.pop("ratio", None), options.pop("codec", "libx264"), options.pop("ticks", 1000)
    best = {"crf": "5"} if codec == "libx264" else {"b": "8M"}
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(min(ticks, 1000), 1 if ticks < 1000 else 100), options=best | options)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, ticks)
        if ratio is not None:
            stream.codec_context.sample_aspect_ratio = ratio
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = round(time * ticks), Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path, orientation: int) -> None:
    """Write into an MP4 how it is to be turned, as a phone does."""
    data = bytearray(path.read_bytes())
    a, b, c, d = MATRICES[orientation]
    header = data.index(b"tkhd")
    struct.pack_into(">9i", data, header + 44, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def write_with_sound(path: Path, images: Sequence[Image.Image], seconds: float) -> Path:
    """Images, ten a second, and a sound that may last longer."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        sound: Any = container.add_stream("aac", rate=16000)
        sound.layout = "mono"
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for number in range(int(seconds * 16000) // 1024):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 16000, 1024 * number, Fraction(1, 16000)
            container.mux(sound.encode(samples))
        container.mux(sound.encode())
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
