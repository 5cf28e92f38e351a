"""The way to look at images that suits a model, a single image, and the frames of a video."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..images import ImageError, to_rgb, upright
from ..tasks import CLASSIFICATION, DETECTION, about
from ..videos import Video, open_video
from .boxes import Detecting
from .classes import Classifier
from .clips import ClipClassifier
from .masks import Segmenting
from .options import Options
from .result import Predictor, Result


def predictor(model: nn.Module, options: Options) -> Predictor:
    """Raises ValueError where the model is in training mode or of no known kind, or of one that an option is not for."""
    if model.training:
        raise ValueError("the model is in training mode, in which it predicts otherwise: call model.eval() first")
    described = about(model)
    if described.task == CLASSIFICATION:
        return Classifier(model, options) if described.clips is None else ClipClassifier(model, options, described.clips)
    if described.task == DETECTION:
        return Detecting(model, described, options)
    return Segmenting(model, described, options)


@torch.inference_mode()
def predict(
    model: nn.Module,
    image: str | os.PathLike[str] | Image.Image,
    *,
    top: int = 5,
    threshold: float | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    multi_scale: bool = False,
) -> Any:
    """What a model finds on an image, or a classifier of videos in a video: ``Classes``, ``Masks`` or ``Boxes``, each with ``draw()``,
    ``to_dict()`` and ``to_json()``.

    It is what the training programs' evaluation finds on it. The model, one of ``open_model``, or a classifier of timm's, or a segmenter
    or detector of this library, must be in evaluation mode and stays where it is.

    Args:
        image: A file, or an image of Pillow's; of a video, the file.
        top, threshold, tile, overlap, multi_scale: As ``atmnet.predicting.options.Options`` has them.

    Raises:
        ImageError, VideoError: the image or video cannot be read.
        ImportError: it is a video, and PyAV is not installed.
        ValueError: the model is in training mode or of no known kind, or an option is wrong, or for models of another kind.
    """
    if not isinstance(image, (str, os.PathLike, Image.Image)):
        raise TypeError(f"an image is a file's path or an image of Pillow's, got a {type(image).__name__}")
    if isinstance(image, Image.Image) and 0 in image.size:
        raise ImageError(f"it is {image.width} x {image.height} pixels: there is nothing on it")
    way = predictor(model, Options(top, threshold, tile, overlap, multi_scale))
    picture = to_rgb(upright(image)) if isinstance(image, Image.Image) else way.open(image)
    found: Result = way.find([way.load(picture)])[0]
    return found


def predict_video(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    every: int = 1,
    top: int = 5,
    threshold: float | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    multi_scale: bool = False,
) -> Iterator[tuple[float, Any]]:
    """What a model finds on the frames of a video, one after the other, each with its time in seconds: as ``predict`` finds it on images.

    Args:
        path: A file that FFmpeg reads.
        every: Look at every so many-th frame.
        top, threshold, tile, overlap, multi_scale: As ``atmnet.predicting.options.Options`` has them.

    Raises:
        ImportError: PyAV is not installed.
        VideoError: the video cannot be read, or, after the frames before the damage, not to its end.
        ValueError: the model is in training mode or of no known kind, or an option is wrong, or for models of another kind.
    """
    if every < 1:
        raise ValueError(f"every {every}: it must be at least 1")
    way = predictor(model, Options(top, threshold, tile, overlap, multi_scale))
    if way.whole_videos:
        raise ValueError("this model takes a video for one thing, not frame by frame: call atmnet.predict")
    return _on_frames(way, open_video(path), every)


@torch.inference_mode()
def _on_frames(way: Predictor, video: Video, every: int) -> Iterator[tuple[float, Any]]:
    for frame in video.frames(every):
        yield frame.time, way.find([way.load(frame.image)])[0]
