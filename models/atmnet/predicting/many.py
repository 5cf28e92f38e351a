"""Many images and frames of videos, of which some may not be readable."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..images import describe
from ..videos import is_video, open_video
from .result import Predictor


@dataclass
class Outcome:
    """What was found on one image or frame, or the error that kept it from being read; the times are of it alone."""

    image: str  # the file
    result: Any = None
    load_ms: float = 0.0  # reading, decoding, resizing
    network_ms: float = 0.0  # an equal share of its batch
    error: str | None = None
    place: int = 0  # of the file among all
    frame: int | None = None  # of a video, from 0 on
    time: float | None = None  # in seconds, of a video's frame

    @property
    def name(self) -> str:
        return self.image if self.time is None else f"{self.image} at {self.time:.2f} s"

    def where(self) -> dict[str, Any]:
        return {"image": self.image} | ({} if self.frame is None else {"frame": self.frame, "time": self.time})

    def to_dict(self) -> dict[str, Any]:
        if self.error is not None:
            return self.where() | {"error": self.error}
        return self.where() | self.result.to_dict() | {"load_ms": self.load_ms, "network_ms": self.network_ms}


@torch.inference_mode()
def predict_files(way: Predictor, files: Sequence[str | Path], batch_size: int = 16, every: int = 1) -> Iterator[Outcome]:
    """The outcomes in order, of a video one for every so many-th frame, or a single one of a model that takes it whole. No
    more than a batch is held at a time. A pass before the first, which no time counts, sets kernels up."""
    way.warm_up()
    pictures = _loaded(way, files, every)
    while batch := _batch(way, list(islice(pictures, batch_size))):
        yield from batch
        batch.clear()  # before the next is read


def _batch(way: Predictor, pictures: list[tuple[Outcome, Any]]) -> list[Outcome]:
    if loaded := [(outcome, seen) for outcome, seen in pictures if outcome.error is None]:
        _through_network(way, loaded)
    return [outcome for outcome, _ in pictures]


def _loaded(way: Predictor, files: Sequence[str | Path], every: int) -> Iterator[tuple[Outcome, Any]]:
    for place, file in enumerate(map(str, files)):
        pictures = _pictures(way, file, every)
        while True:
            outcome, seen, began = Outcome(file, place=place), None, time.perf_counter()
            try:
                if (picture := next(pictures, None)) is None:
                    break
                outcome.frame, outcome.time, image = picture
                seen = way.load(image)
            except Exception as error:  # of reading, which ends the file, or of resizing what is a pixel wide
                outcome.error = describe(error)
            outcome.load_ms = 1e3 * (time.perf_counter() - began)
            yield outcome, seen


def _pictures(way: Predictor, file: str, every: int) -> Iterator[tuple[int | None, float | None, Any]]:
    if is_video(file) and not way.whole_videos:
        for number, frame in enumerate(open_video(file).frames(every)):
            yield every * number, frame.time, frame.image
    else:
        yield None, None, way.open(file)


def _through_network(way: Predictor, loaded: list[tuple[Outcome, Any]]) -> None:
    began = time.perf_counter()
    try:
        results = way.find([one for _, one in loaded])
    except Exception as error:  # of an image that takes more memory than there is
        if len(loaded) > 1:
            for one in loaded:
                _through_network(way, [one])
        else:
            loaded[0][0].error = f"in the network: {describe(error)}"
        return
    network_ms = 1e3 * (time.perf_counter() - began) / len(loaded)
    for (outcome, _), result in zip(loaded, results, strict=True):
        outcome.result, outcome.network_ms = result, network_ms
