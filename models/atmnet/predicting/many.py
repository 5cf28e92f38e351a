"""Many images, of which some may not be readable."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..images import describe, open_image
from .result import Predictor


@dataclass
class Outcome:
    """What was found on one image, or the error that kept it from being read; the times are of this image alone."""

    image: str
    result: Any = None
    load_ms: float = 0.0  # reading, decoding, resizing
    network_ms: float = 0.0  # an equal share of its batch
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        return {"image": self.image} | self.result.to_dict() | {"load_ms": self.load_ms, "network_ms": self.network_ms}


@torch.inference_mode()
def predict_files(way: Predictor, images: Sequence[str | Path], batch_size: int = 16) -> Iterator[Outcome]:
    """The outcomes in order. No more than a batch is held at a time. A pass before the first, which no time counts, sets kernels up."""
    way.warm_up()
    for start in range(0, len(images), batch_size):
        yield from _batch(way, [str(image) for image in images[start : start + batch_size]])


def _batch(way: Predictor, images: Sequence[str]) -> list[Outcome]:
    outcomes, loaded = [], []
    for image in images:
        began, outcome = time.perf_counter(), Outcome(image)
        try:
            loaded.append((outcome, way.load(open_image(image))))
        except Exception as error:  # of reading, or of resizing what is a pixel wide
            outcome.error = describe(error)
        outcome.load_ms = 1e3 * (time.perf_counter() - began)
        outcomes.append(outcome)
    if loaded:
        _through_network(way, loaded)
    return outcomes


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
