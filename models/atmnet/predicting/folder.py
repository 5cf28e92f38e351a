"""The folder of a prediction: a table and JSON of every task, pictures and labels of a segmenter, pictures and COCO's results of a
detector."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from atm_triton.files import write_atomically
from atm_triton.strict_json import dumps

from ..tasks import DETECTION, SEGMENTATION, About
from .many import Outcome
from .writing import CsvFile, JsonFile, telling

FILES = ("predictions.json", "predictions.csv", "detections.json", "images.json")  # beside the folders of pictures


class Folder:
    """Files of a prediction, with pictures of ``images`` under names of their own: where they lie below the folder that holds them all."""

    def __init__(self, path: Path, described: About, columns: Sequence[str], images: Sequence[Path]) -> None:
        self.path, self.described, self.images = path, described, images
        self.names = picture_names(images)
        with telling(path):
            path.mkdir(parents=True, exist_ok=True)
        self.files: list[JsonFile | CsvFile] = [
            JsonFile(os.fspath(path / "predictions.json")),
            CsvFile(os.fspath(path / "predictions.csv"), columns),
        ]
        self.results = JsonFile(os.fspath(path / "detections.json")) if described.task == DETECTION else None
        self.truth = JsonFile(os.fspath(path / "images.json")) if described.task == DETECTION else None
        if self.truth is not None:  # what COCO's results are about, as an annotation file without annotations
            names = zip(described.category_ids, described.classes, strict=True)
            categories = dumps([{"id": id, "name": name} for id, name in names])
            self.truth.begin, self.truth.end = f'{{"categories": {categories}, "annotations": [], "images": [', "]}"

    def write(self, number: int, outcome: Outcome) -> None:
        for file in self.files:
            file.write(number, outcome)
        if outcome.error is not None:
            return
        result, name = outcome.result, self.names[number]
        if self.described.task == SEGMENTATION:
            self._picture("labels", name, result.label_image())
        if self.described.task in (SEGMENTATION, DETECTION):
            self._picture("pictures", name, result.draw())
        if self.results is not None and self.truth is not None:
            size = {"width": result.image.width, "height": result.image.height}
            self.truth.add({"id": number + 1, "file_name": os.fspath(self.images[number])} | size)
            for row in result.to_coco(number + 1):
                self.results.add(row)

    def _picture(self, kind: str, name: str, picture: Image.Image) -> None:
        path = self.path / kind / name
        with telling(path):
            write_atomically(path, partial(picture.save, format="png"))

    def close(self) -> None:
        for file in [*self.files, self.results, self.truth]:
            if file is not None:
                file.close()


def picture_names(images: Sequence[Path]) -> list[str]:
    """Names of PNG files below a folder, each image's own: its path below the deepest folder that holds all, and its ending too where
    another image has the same name but for that."""
    whole = [os.path.abspath(image) for image in images]
    above = os.path.commonpath([os.path.dirname(path) for path in whole])
    inside = [os.path.relpath(path, above) for path in whole]
    stems = Counter(os.path.splitext(path)[0] for path in inside)
    return [(path if stems[os.path.splitext(path)[0]] > 1 else os.path.splitext(path)[0]) + ".png" for path in inside]
