"""Clips of videos as a network gets them: which frames, which part of each, and the numbers that they become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from .videos import Video, VideoError

UNIFORM, DENSE = SAMPLINGS = ("uniform", "dense")
CROPS = {1: (0.5,), 3: (0.0, 0.5, 1.0)}  # places along the longer side

Box = tuple[float, float, float, float]  # left, top, right and bottom in pixels


@dataclass(frozen=True)
class Clips:
    """Clips of a video that a classifier of videos is given, and whose mean is its answer.

    Places are counted in frames of the average rate, so that of a video whose rate varies a clip shows equal times.

    Attributes:
        frames: Of a clip.
        sampling: ``"uniform"``: from all over the video; ``"dense"``: every so many-th of successive frames, or, of a video that is too
            short for it, uniform.
        stride: From one frame of a dense clip to the next.
        number: Of a video, spread over it.
        crops: Of each, 1 in the middle or 3 along the longer side.
    """

    frames: int = 16
    sampling: str = UNIFORM
    stride: int = 2
    number: int = 1
    crops: int = 1

    def chosen(self, video: Video, clip: int) -> list[float]:
        """Times in seconds of the frames of an evaluation's clip, counted from 0; raises as ``drawn``."""
        share = (clip + 0.5) / self.number
        return self._times(video, share, [share] * self.frames)

    def drawn(self, video: Video) -> list[float]:
        """Times of a clip at random, by PyTorch's generator: of a uniform one, each frame from anywhere in its share of the video.

        Raises:
            VideoError: the video is too short, or does not say how long it is.
        """
        start, *places = torch.rand(1 + self.frames).tolist()
        return self._times(video, start, places)

    def _times(self, video: Video, start: float, places: Sequence[float]) -> list[float]:
        if video.length is not None and video.length < self.frames:
            raise VideoError(f"it is too short: it has {video.length} of a clip's {self.frames} frames")
        rate = float(video.fps or 0) or (video.length or 0) / (video.duration or 1)
        if not video.duration or not rate:
            raise VideoError("it does not say how long it is: write it anew, as by ffmpeg -i IN -c copy OUT.mp4")
        length = video.duration * rate
        if self.sampling == DENSE:
            span = min(length, self.frames * self.stride)
            first, places = math.floor(start * (length - span + 1)), [0.0] * self.frames
        else:
            span, first = length, 0
        step = span / self.frames
        return [math.floor(first + (number + place) * step + 1e-6) / rate for number, place in enumerate(places)]


@dataclass(frozen=True)
class ClipView:
    """How an evaluation or a prediction looks at videos: the clips, and what becomes of their frames."""

    clips: Clips
    side: int
    crop_pct: float
    interpolation: str
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, video: Video, clip: int) -> Tensor:
        """The crops of a clip, ``[crops, 3, T, side, side]``.

        Raises:
            VideoError: the video cannot be read there, or is too short.
        """
        boxes = squares(video.size, self.clips.crops, self.crop_pct)
        return normalised(read(video, self.clips.chosen(video, clip), boxes, self.side, self.interpolation), self.mean, self.std)


def squares(size: tuple[int, int], crops: int, crop_pct: float) -> list[Box]:
    """Squares of a picture of this width and height, as large as the share of its shorter side."""
    (width, height), side = size, min(size) * min(crop_pct, 1.0)
    found = []
    for place in CROPS[crops]:
        x, y = (place, 0.5) if width >= height else (0.5, place)
        left, top = x * (width - side), y * (height - side)
        found.append((left, top, left + side, top + side))
    return found


def read(video: Video, times: Sequence[float], boxes: Sequence[Box], side: int, interpolation: str) -> Tensor:
    """These parts of the frames at these times as bytes ``[boxes, T, 3, side, side]``. One whole frame is held at a time.

    Raises:
        VideoError: the video cannot be read there.
    """
    clip, resample = np.empty((len(boxes), len(times), side, side, 3), np.uint8), Image.Resampling[interpolation.upper()]
    for number, frame in enumerate(video.at(times)):
        image = frame.image if frame.image.size == video.size else frame.image.resize(video.size, resample)  # it may change on the way
        for part, box in zip(clip[:, number], boxes, strict=True):
            part[:] = image.resize((side, side), resample, box)
    return rearrange(torch.from_numpy(clip), "n t h w c -> n t c h w")


def normalised(clip: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes ``[..., T, 3, H, W]`` as a network takes them, ``[..., 3, T, H, W]``."""
    values = (clip / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return rearrange(values, "... t c h w -> ... c t h w")
