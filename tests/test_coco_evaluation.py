"""COCO's metrics: as pycocotools has them, for any number of processes, on what no detector should be able to upset."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from atmnet.drawing.objects import colour
from atmnet_train.coco import parse
from atmnet_train.common.broken import BrokenImages
from atmnet_train.common.errors import RunError
from atmnet_train.detection.annotations import Split, open_split
from atmnet_train.detection.evaluate import METRICS, REPORTED, Evaluator, class_metrics, coco_metrics, evaluated, to_results
from atmnet_train.detection.pictures import draw
from coco_shapes import run_lengths, write_coco
from faster_coco_eval import COCO
from PIL import Image
from torch import Tensor, nn

HEIGHT, WIDTH = 220, 260


def box_mask(box: np.ndarray) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    x, y, w, h = box.round().astype(int)
    mask[y : y + h, x : x + w] = True
    mask[y : y + h // 3, x : x + w // 3] = False  # a corner is missing: masks are not their boxes
    return mask


def random_truth(rng: np.random.Generator) -> Split:
    """Small to large objects of three categories on twelve images, one of them empty; every fifth is a crowd."""
    images = [{"id": 10 * n + 3, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(12)]
    annotations = []
    for image in images[:-1]:
        for _ in range(6):
            w, h = rng.uniform(12, 150, 2)
            box = np.array([rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h), w, h])
            mask = box_mask(box)
            crowd = int(len(annotations) % 5 == 0)
            x, y, w, h = box.tolist()
            corners = [x + w / 3, y, x + w, y, x + w, y + h, x, y + h, x, y + h / 3]
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": image["id"], "category_id": int(rng.choice([2, 5, 9]))},
                    **{"bbox": box.tolist(), "area": float(mask.sum()), "iscrowd": crowd},
                    "segmentation": run_lengths(mask) if crowd else [corners],
                }
            )
    return Split(Path("images"), Path("truth.json"), images, annotations, [2, 5, 9], ["a", "b", "c"])


def random_detections(rng: np.random.Generator, split: Split) -> dict[int, dict[str, Tensor]]:
    """Detections near the objects, some twice or of another class, and some anywhere, with scores that are often equal."""
    found: dict[int, dict[str, Tensor]] = {}
    for image in split.images:
        rows = [row for row in split.annotations if row["image_id"] == image["id"]]
        boxes = [np.array(row["bbox"]) + rng.normal(0, 5, 4) for row in rows for _ in range(2)]
        labels = [split.category_ids.index(row["category_id"]) + 1 for row in rows for _ in range(2)]
        boxes += [np.array([*rng.uniform(0, 100, 2), *rng.uniform(5, 100, 2)]) for _ in range(5)]
        labels += rng.integers(1, 4, 5).tolist()
        sized = np.stack(boxes)
        sized[:, :2], sized[:, 2:] = sized[:, :2].clip(0), sized[:, 2:].clip(4)
        masks = torch.from_numpy(np.stack([box_mask(box) for box in sized]))
        found[image["id"]] = {
            "boxes": torch.from_numpy(np.concatenate([sized[:, :2], sized[:, :2] + sized[:, 2:]], 1)).float(),
            "labels": torch.tensor(labels),
            "scores": torch.from_numpy(rng.uniform(0, 1, len(labels)).round(1)).float(),
            "masks": masks[:, None].float(),
        }
    return found


@pytest.mark.parametrize(("kind", "other"), [("bbox", "segmentation"), ("segm", "bbox")])
@pytest.mark.parametrize("seed", range(3))
def test_all_twelve_figures_are_those_of_pycocotools(kind: str, other: str, seed: int, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(seed)
    split = random_truth(rng)
    outputs = random_detections(rng, split)
    results = [row for id, output in outputs.items() for row in to_results(output, id, split.category_ids)]
    found = evaluated(COCO(split.ground_truth), results, kind, outputs)
    ours, classes = coco_metrics(found), class_metrics(found)
    for metric in ("AP", "AP50"):
        assert np.mean([figures[metric] for figures in classes.values()]) == pytest.approx(ours[metric])

    categories = [{"id": id, "name": name} for id, name in zip(split.category_ids, split.classes, strict=True)]
    content = {"info": {}, "images": split.images, "annotations": split.annotations, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps([{k: v for k, v in row.items() if k != other} for row in results]))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(tmp_path / "truth.json"))
        evaluation = cocoeval.COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(ours) == list(METRICS)
    assert 0.1 < ours["AP"] / 100 < 0.9
    np.testing.assert_allclose(np.array(list(ours.values())) / 100, evaluation.stats, atol=1e-4, rtol=0)


def test_crowds_neither_count_nor_punish() -> None:
    split = random_truth(np.random.default_rng(0))
    crowds = [row for row in split.annotations if row["iscrowd"]]
    exact = [{name: row[name] for name in ("image_id", "category_id", "bbox")} | {"score": 0.9} for row in split.annotations]
    ids = [image["id"] for image in split.images]
    assert coco_metrics(evaluated(COCO(split.ground_truth), exact, "bbox", ids))["AP"] == pytest.approx(100)
    in_crowd = [{name: row[name] for name in ("image_id", "category_id", "bbox")} | {"score": 1.0} for row in crowds for _ in range(3)]
    assert coco_metrics(evaluated(COCO(split.ground_truth), exact + in_crowd, "bbox", ids))["AP"] == pytest.approx(100)


def test_ids_that_coco_would_miscount_do_not_matter() -> None:
    split = random_truth(np.random.default_rng(1))
    exact = [{name: row[name] for name in ("image_id", "category_id", "bbox")} | {"score": 0.9} for row in split.annotations]
    for row in split.annotations:
        row["id"] = 0
    assert coco_metrics(evaluated(COCO(split.ground_truth), exact, "bbox", [image["id"] for image in split.images]))[
        "AR_100"
    ] == pytest.approx(100)


class Answers(nn.Module):
    """A detector that knows its images by their first pixel, and answers what it was given."""

    def __init__(self, answers: dict[int, dict[str, Tensor]]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[int] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training and all(image.min() >= 0 and image.max() <= 1 for image in images)
        numbers = [round(255 * float(image[0, 0, 0])) for image in images]
        self.asked += numbers
        return [self.answers[number] for number in numbers]


def nothing(height: int = HEIGHT, width: int = WIDTH) -> dict[str, Tensor]:
    return {
        **{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        **{"scores": torch.zeros(0), "masks": torch.zeros(0, 1, height, width)},
    }


def write_images(split: Split, folder: Path) -> None:
    folder.mkdir()
    split.folder = folder
    for number, image in enumerate(split.images):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(folder / image["file_name"])


def make_evaluator(split: Split, output: Path, pictures: int = 0, masks: bool = True) -> Evaluator:
    line = f"--data-dir x --val-batch-size 2 --workers 0 --pictures {pictures} --output {output}"
    settings = parse([*line.split(), "--detector", "mask-rcnn" if masks else "retinanet"])
    return Evaluator(split, settings, Accelerator(cpu=True), BrokenImages(3, len(split.images)))


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_pass_over_the_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    split = random_truth(rng)
    outputs = random_detections(rng, split)
    write_images(split, tmp_path / "images")
    model = Answers(dict(enumerate(outputs.values())))
    found = make_evaluator(split, tmp_path, pictures=2)({"": model})[""]
    assert model.training and sorted(model.asked) == list(range(12))

    results = json.loads((tmp_path / "detections.json").read_text())
    assert results == [row for id, output in outputs.items() for row in to_results(output, id, split.category_ids)]
    for prefix, kind in (("box", "bbox"), ("mask", "segm")):
        direct = coco_metrics(evaluated(COCO(split.ground_truth), results, kind, outputs))
        assert {name: found[f"{prefix}_{name}"] for name in REPORTED} == {name: direct[name] for name in REPORTED}
    assert found["images"] == 12
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0.png", "1.png"]


@pytest.mark.usefixtures("fresh_accelerate")
def test_no_detections_are_an_ap_of_zero(tmp_path: Path) -> None:
    split = random_truth(np.random.default_rng(4))
    write_images(split, tmp_path / "images")
    found = make_evaluator(split, tmp_path, pictures=1)({"": Answers({number: nothing() for number in range(12)})})[""]
    assert found == {f"{prefix}_{name}": 0.0 for prefix in ("box", "mask") for name in REPORTED} | {"images": 12}
    assert json.loads((tmp_path / "detections.json").read_text()) == []


@pytest.mark.usefixtures("fresh_accelerate")
def test_an_unreadable_image_is_left_out(tmp_path: Path) -> None:
    split = random_truth(np.random.default_rng(5))
    write_images(split, tmp_path / "images")
    first = split.images[0]
    (split.folder / first["file_name"]).write_bytes(b"")
    rows = [row for row in split.annotations if not row["iscrowd"]]
    answers = {}
    for number, image in enumerate(split.images):
        own = [row for row in rows if row["image_id"] == image["id"]]
        boxes = torch.tensor([row["bbox"] for row in own]).reshape(-1, 4)
        labels = torch.tensor([split.category_ids.index(row["category_id"]) + 1 for row in own], dtype=torch.int64)
        answers[number] = {"boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), "labels": labels}
        answers[number]["scores"] = torch.ones(len(own))
    found = make_evaluator(split, tmp_path, masks=False)({"": Answers(answers | {0: answers[0]})})[""]
    assert found["box_AP"] == pytest.approx(100) and found["images"] == 11  # its objects are not missed


@pytest.mark.usefixtures("fresh_accelerate")
def test_images_without_objects_have_no_ap(tmp_path: Path) -> None:
    split = random_truth(np.random.default_rng(6))
    split.annotations = [row for row in split.annotations if row["image_id"] == split.images[0]["id"]]
    write_images(split, tmp_path / "images")
    (split.folder / split.images[0]["file_name"]).write_bytes(b"")
    with pytest.raises(RunError, match=r"none of the 11 readable images of .*images has an object"):
        make_evaluator(split, tmp_path, masks=False)({"": Answers({number: nothing() for number in range(12)})})


def test_objects_are_drawn_in_the_colour_of_their_class(tmp_path: Path) -> None:
    split = open_split(write_coco(tmp_path), "val2017", masks=True)
    grey = torch.full((3, 96, 112), 128, dtype=torch.uint8)
    times = 4  # so much larger, for the captions
    for row in split.annotations[:3]:
        page = draw(grey, split.images[0], [row], split, masks=True)
        assert page.shape == (3, times * 96, times * 112)
        x, y, w, h = (int(times * value) for value in row["bbox"])
        assert tuple(page[:, y, x + w // 2].tolist()) == colour(split.category_ids.index(row["category_id"]))  # the border of the box
        assert (page[:, y + h - 8, x + w // 2] != 128).any()  # the mask
        changed = (page != 128).any(0)
        changed[y : y + h + 1, x:] = False  # the caption may stand out to the right
        assert not changed.any()
    assert (draw(grey, split.images[0], [], split, masks=True) == 128).all()
