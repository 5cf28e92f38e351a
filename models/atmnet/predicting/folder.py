"""The folder of a prediction: a table and JSON of every task, annotated videos, pictures and labels of a segmenter, pictures and COCO's
results of a detector."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from atm_triton.files import write_atomically
from atm_triton.strict_json import dumps

from ..tasks import CLASSIFICATION, DETECTION, SEGMENTATION, About
from ..videos import is_video
from .annotated import AnnotatedVideo
from .many import Outcome
from .writing import CannotWrite, CsvFile, JsonFile, telling

# Beside the folders of pictures; of a detector alone the last two.
FILES = FOUND, TABLE, RESULTS, TRUTH = "predictions.json", "predictions.csv", "detections.json", "images.json"


class Folder:
    """Files of a prediction, with pictures of ``images`` under names of their own: where they lie below the folder that holds them all."""

    def __init__(self, path: Path, described: About, columns: Sequence[str], images: Sequence[Path]) -> None:
        self.path, self.described, self.images = path, described, images
        self.names = picture_names(images)
        self._spare_images()
        self.video: AnnotatedVideo | None = None
        with telling(path):
            path.mkdir(parents=True, exist_ok=True)
        self.files: list[JsonFile | CsvFile] = [
            JsonFile(os.fspath(path / FOUND)),
            CsvFile(os.fspath(path / TABLE), columns),
        ]
        self.results = JsonFile(os.fspath(path / RESULTS)) if described.task == DETECTION else None
        self.truth = JsonFile(os.fspath(path / TRUTH)) if described.task == DETECTION else None
        if self.truth is not None:  # what COCO's results are about, as an annotation file without annotations
            names = zip(described.category_ids, described.classes, strict=True)
            categories = dumps([{"id": id, "name": name} for id, name in names])
            self.truth.begin, self.truth.end = f'{{"categories": {categories}, "annotations": [], "images": [', "]}"

    def _spare_images(self) -> None:
        given = {os.path.realpath(image) for image in self.images}
        for image, name in zip(self.images, self.names, strict=True):
            for kind in ("pictures", "labels") if is_video(image) or self.described.task != CLASSIFICATION else ():
                if os.path.realpath(self.path / kind / name) in given:
                    raise CannotWrite(f"--out {self.path}: {self.path / kind / name} is among what is looked at: give another folder")

    def write(self, number: int, outcome: Outcome) -> None:
        for file in self.files:
            file.write(number, outcome)
        name, image = self.names[outcome.place], os.fspath(self.images[outcome.place])
        if self.video is not None and self.video.path != self.path / "pictures" / name:
            self._close_video()
        if outcome.error is not None:
            return
        result = outcome.result
        if self.described.task == SEGMENTATION:
            label_name = name if outcome.frame is None else f"{name}/{outcome.frame:06d}.png"
            self._picture("labels", label_name, result.label_image())
        if outcome.time is not None:
            self._frame(name, outcome, outcome.time)
        elif self.described.task != CLASSIFICATION:
            self._picture("pictures", name, result.draw())
        if self.results is not None and self.truth is not None:
            size = {"width": result.image.width, "height": result.image.height}
            where = {"frame": outcome.frame, "time": outcome.time} if outcome.frame is not None else {}
            self.truth.add({"id": number + 1, "file_name": image} | where | size)
            for row in result.to_coco(number + 1):
                self.results.add(row)

    def _picture(self, kind: str, name: str, picture: Image.Image) -> None:
        path = self.path / kind / name
        with telling(path):
            write_atomically(path, partial(picture.save, format="png"))

    def _frame(self, name: str, outcome: Outcome, time: float) -> None:
        if self.video is None:
            self.video = AnnotatedVideo(self.path / "pictures" / name, strip=self.described.task != DETECTION)
        with telling(self.video.path):
            picture, legend = outcome.result.picture()
            self.video.write(picture, legend, time)

    def _close_video(self) -> None:
        video, self.video = self.video, None
        if video is not None:
            with telling(video.path):
                video.close()

    def close(self) -> None:
        try:
            self._close_video()
        finally:
            for file in [*self.files, self.results, self.truth]:
                if file is not None:
                    file.close()


def picture_names(images: Sequence[Path]) -> list[str]:
    """Names of PNG files below a folder, of videos MP4 files, each image's own: its path below the deepest folder that holds all, and its
    ending too where another image has the same name but for that."""
    whole = [os.path.abspath(image) for image in images]
    above = os.path.commonpath([os.path.dirname(path) for path in whole])
    inside = [os.path.relpath(path, above) for path in whole]
    stems = Counter(os.path.splitext(path)[0] for path in inside)
    names = [path if stems[os.path.splitext(path)[0]] > 1 else os.path.splitext(path)[0] for path in inside]
    return [name + (".mp4" if is_video(path) else ".png") for name, path in zip(names, inside, strict=True)]
