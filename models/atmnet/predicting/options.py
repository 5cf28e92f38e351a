"""How to predict."""

from __future__ import annotations

from dataclasses import dataclass

TILE = 64  # pixels of the smallest


@dataclass(frozen=True)
class Options:
    """Settings of a prediction.

    Attributes:
        top: Classes of an image, of a classifier.
        threshold: Leave out what is less probable: classes, objects, and the class of a pixel. None: nothing but objects under 0.3.
        tile: Of a segmenter, take images in their own size, in windows of so many pixels a side, of which the network sees one at a time.
        overlap: Of neighbouring windows, in pixels; None is a quarter of them.
        multi_scale: Of a segmenter, the mean over six scales from 0.5 to 1.75, each also mirrored.
    """

    top: int = 5
    threshold: float | None = None
    tile: int | None = None
    overlap: int | None = None
    multi_scale: bool = False

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top {self.top}: it must be at least 1")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold}: it must be between 0 and 1")
        if self.tile is not None and self.tile < TILE:
            raise ValueError(f"tile {self.tile}: it must be at least {TILE}")
        if self.overlap is not None and self.tile is None:
            raise ValueError(f"overlap {self.overlap} is of tiles: give tile too")
        if self.overlap is not None and self.tile is not None and not 0 <= self.overlap <= self.tile // 2:
            raise ValueError(f"overlap {self.overlap}: it must be between 0 and {self.tile // 2}, half of tile {self.tile}")
