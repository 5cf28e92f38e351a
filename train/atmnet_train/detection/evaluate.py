"""COCO's metrics: detections of all processes brought together and scored by faster-coco-eval."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from atmnet.predicting.boxes import MASK_THRESHOLD
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import box_convert

from atm_triton.strict_json import dumps

from ..common.broken import BrokenImages
from ..common.errors import RunError
from ..common.evaluation import evaluating, readable
from ..common.files import write_atomically
from ..common.loading import loader_options
from ..common.tables import CLASSES, Rows, Tables
from .annotations import Split
from .checks import Record
from .data import NOTHING, ValImages, collate
from .masks import encode
from .pictures import draw_pictures
from .settings import Settings

# In the order of COCO's summary; the first six are what papers report.
METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR_1", "AR_10", "AR_100", "AR_S", "AR_M", "AR_L")
REPORTED = METRICS[:6]


def to_results(output: dict[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[Record]:
    """One image's detections in COCO's format. Masks `[N, 1, H, W]` become run lengths here: those of one image are held at a time."""
    boxes = box_convert(output["boxes"].float().cpu(), "xyxy", "xywh").tolist()
    rows = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for box, label, score in zip(boxes, output["labels"].tolist(), output["scores"].tolist(), strict=True)
    ]
    if rows and "masks" in output:
        masks = encode((output["masks"][:, 0] > MASK_THRESHOLD).cpu())
        rows = [row | {"segmentation": mask} for row, mask in zip(rows, masks, strict=True)]
    return rows


def evaluated(truth: COCO, results: Sequence[Record], kind: str, image_ids: Iterable[int]) -> COCOeval_faster:
    """The evaluation of boxes (`bbox`) or masks (`segm`) over these images."""
    # COCO's results of masks have no box: such a detection is as large as its mask.
    other = "bbox" if kind == "segm" else "segmentation"
    rows = [{name: value for name, value in row.items() if name != other} for row in results]
    detections = truth.loadRes(rows) if rows else COCO(truth.dataset | {"annotations": []})  # loadRes fails on nothing before 1.8
    evaluation = COCOeval_faster(truth, detections, kind)
    evaluation.params.imgIds = sorted(image_ids)
    evaluation.run()
    return evaluation


def coco_metrics(evaluation: COCOeval_faster) -> dict[str, float]:
    """COCO's twelve figures in percent, without those about a size that no object of the ground truth has."""
    return {name: 100 * float(value) for name, value in zip(METRICS, evaluation.stats[:12], strict=True) if value >= 0}


def class_metrics(evaluation: COCOeval_faster) -> dict[int, dict[str, float]]:
    """AP and AP50 in percent by category, as COCO's summary has them over all; none of a category without an object."""
    found = {}
    for place, category in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, place, 0, -1]  # [IoU, recall], of any size and up to 100 detections an image
        if (precision >= 0).any():
            found[category] = {"AP": 100 * float(precision.mean()), "AP50": 100 * float(precision[0].mean())}
    return found


def class_table(split: Split, by_class: Mapping[str, Mapping[int, Mapping[str, float]]], image_ids: Container[int]) -> Rows:
    """A row for each class: its AP and AP50 of boxes and masks, None where there is no object, and its objects in these images."""
    objects = Counter(row["category_id"] for row in split.annotations if row["image_id"] in image_ids and not row.get("iscrowd"))
    columns = [(f"{prefix}_{metric}", prefix, metric) for prefix in by_class for metric in ("AP", "AP50")]
    return [
        {"class": name}
        | {column: by_class[prefix].get(category, {}).get(metric) for column, prefix, metric in columns}
        | {"objects": objects[category]}
        for category, name in zip(split.category_ids, split.classes, strict=True)
    ]


class Evaluator:
    """AP of one or several models in one pass over the images. `detections.json` and the pictures are of the last pass."""

    def __init__(self, split: Split, settings: Settings, accelerator: Accelerator, broken: BrokenImages) -> None:
        self.split, self.accelerator, self.broken = split, accelerator, broken
        self.output, self.pictures = Path(settings.run.output), settings.evaluation.pictures
        self.classes: dict[str, Rows] = {}  # of the last pass, by model: on the main process
        self.drawn: list[Path] = []
        self.kinds = {"box": "bbox"} | ({"mask": "segm"} if settings.model.has_masks else {})
        # Prepared by Accelerate: it shards the images, some twice to fill the last batch.
        self.loader: Any = accelerator.prepare_data_loader(
            DataLoader(
                ValImages(split.folder, split.images),
                settings.evaluation.val_batch_size,
                collate_fn=collate,
                **loader_options(settings.data, accelerator, keep_workers=False),
            )
        )

    @torch.no_grad()
    def __call__(self, models: dict[str, nn.Module], check_stop: Callable[[], None] = lambda: None) -> dict[str, dict[str, float]]:
        found: dict[str, dict[int, list[Record]]] = {name: {} for name in models}  # detections by image: one seen twice counts once
        with evaluating(models):
            for images, ids in readable(self.loader, self.accelerator, self.broken, check_stop):
                images = [image.float() / 255 for image in images]
                for name, model in models.items():
                    with self.accelerator.autocast():
                        outputs = model(images)
                    for output, image_id in zip(outputs, ids, strict=True):
                        if image_id != NOTHING["id"]:
                            found[name][image_id] = to_results(output, image_id, self.split.category_ids)
        return {name: self._score(name, by_image) for name, by_image in found.items()}

    def tables(self, name: str) -> Tables:
        return {CLASSES: self.classes[name]}

    def draw(self, folder: Path, prefix: str) -> list[Path]:
        """The pictures, which are drawn with the detections of the last pass."""
        return self.drawn

    def _score(self, name: str, own: dict[int, list[Record]]) -> dict[str, float]:
        """The main process scores what all have found, and tells the others."""
        by_image: dict[int, list[Record]] = dict(gather_object(list(own.items())))
        told: list[dict[str, float]] = [{}]
        if self.accelerator.is_main_process:
            truth = COCO(self.split.ground_truth)
            results = [row for image_id in sorted(by_image) for row in by_image[image_id]]
            by_class: dict[str, dict[int, dict[str, float]]] = {}
            for prefix, kind in self.kinds.items():
                evaluation = evaluated(truth, results, kind, by_image)
                metrics, by_class[prefix] = coco_metrics(evaluation), class_metrics(evaluation)
                told[0] |= {f"{prefix}_{metric}": metrics[metric] for metric in REPORTED if metric in metrics}
            self.classes[name] = class_table(self.split, by_class, by_image)
            told[0]["images"] = len(by_image)
            text = dumps(results)
            write_atomically(self.output / f"{name}detections.json", lambda file: file.write(text.encode()))
            self.drawn = draw_pictures(self.output / f"{name}pictures", self.split, by_image, self.pictures, "mask" in self.kinds)
        broadcast_object_list(told)
        if "box_AP" not in told[0]:
            raise RunError(f"none of the {len(by_image)} readable images of {self.split.folder} has an object: there is no AP")
        return told[0]
