"""Data in COCO's layout: what is read of it, what is refused before training, and what a training sample is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from atmnet_train.common.errors import UsageError
from atmnet_train.common.sampling import SampleKey
from atmnet_train.detection.annotations import open_split
from atmnet_train.detection.data import Packed, TrainImages, ValImages, collate
from atmnet_train.detection.masks import decode, encode
from coco_shapes import write_coco
from PIL import Image
from torchvision.ops import masks_to_boxes

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "data")


def change(data: Path, edit: Callable[[dict[str, Any]], Any], split: str = "train2017") -> Path:
    path = data / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    replaced = edit(content)
    path.write_text(json.dumps(content if replaced is None else replaced))
    return path


def train_images(data: Path, masks: bool = True, seed: int = 0, max_broken: int = 2) -> TrainImages:
    split = open_split(data, "train2017", masks)
    return TrainImages(split.folder, split.targets(masks)[0], masks, seed, max_broken)


def test_labels_follow_the_sorted_category_ids(data: Path) -> None:
    split = open_split(data, "train2017", masks=True)
    assert split.category_ids == [3, 11] and split.classes == ["square", "disc"]
    targets, left_out = split.targets(masks=True)
    assert [target["id"] for target in targets] == sorted(target["id"] for target in targets)
    assert [target["labels"] for target in targets] == [[1, 2]] * 5 + [[]] and not left_out  # no crowd among them


def test_samples_hold_what_the_detectors_take(data: Path) -> None:
    images = train_images(data)
    image, target, broken = images[SampleKey(0, 0, 1)]
    assert type(image) is torch.Tensor and image.dtype == torch.uint8 and image.shape == (3, 96, 112) and not broken
    assert {name: (value.dtype, tuple(value.shape)) for name, value in target.items()} == {
        "boxes": (torch.float32, (2, 4)),
        "labels": (torch.int64, (2,)),
        "image_id": (torch.int64, ()),
        "masks": (torch.uint8, (2, 96, 112)),
    }
    assert all(type(value) is torch.Tensor for value in target.values())
    _, nothing, _ = images[SampleKey(0, 0, 5)]
    assert nothing["boxes"].shape == (0, 4) and nothing["masks"].shape == (0, 96, 112) and nothing["labels"].shape == (0,)
    assert "masks" not in train_images(data, masks=False)[SampleKey(0, 0, 1)][1]


def test_half_of_the_samples_are_mirrored_and_everything_on_them_with_them(data: Path) -> None:
    images = train_images(data)
    mirrored = 0
    for position in range(20):
        image, target, _ = images[SampleKey(3, position, 2)]
        red, blue = image[0].float(), image[2].float()
        for name, (mask, box) in enumerate(zip(target["masks"], target["boxes"], strict=True)):
            inside = (red - blue)[mask.bool()].mean() * (1 if name == 0 else -1)
            assert inside > 150  # the square is red and the disc is blue, wherever they went
            corners = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])
            assert torch.allclose(corners, box, atol=1)
        mirrored += bool(target["boxes"][0, 0] > target["boxes"][1, 0])  # the square stood on the left
    assert 4 <= mirrored <= 16


def test_a_sample_depends_on_its_place_alone(data: Path) -> None:
    first, second = train_images(data, seed=5), train_images(data, seed=5)
    torch.rand(7)
    for key in (SampleKey(0, 4, 1), SampleKey(2, 9, 3)):
        a, b = first[key], second[key]
        assert torch.equal(a[0], b[0]) and torch.equal(a[1]["boxes"], b[1]["boxes"]) and torch.equal(a[1]["masks"], b[1]["masks"])


def test_masks_come_through_run_lengths_unchanged() -> None:
    masks = torch.zeros(3, 9, 7, dtype=torch.uint8)
    masks[0, 2:5, 1:4] = 1
    masks[1, 0, 0] = 1  # the run of zeros in front is empty
    assert torch.equal(decode(json.loads(json.dumps(encode(masks))), 9, 7), masks)
    assert decode([[[0.0, 0.0, 4.0, 0.0, 4.0, 3.0, 0.0, 3.0]], {"size": [9, 7], "counts": [9, 2, 52]}], 9, 7).sum((1, 2)).tolist() == [
        12,
        2,
    ]


def test_records_are_packed_unchanged() -> None:
    records = [{"id": 4, "boxes": [[1.5, 2.0, 3.0, 4.0]]}, {"id": 5, "boxes": []}, {"id": 9, "file_name": "ä.png"}]
    packed = Packed(records)
    assert [packed[index] for index in range(len(packed))] == records


def test_boxes_are_cut_at_the_border_and_dropped_outside(data: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [-5, -5, 25, 200]
        content["annotations"][1]["bbox"] = [112, 10, 20, 20]
        content["annotations"][3]["bbox"] = [10, 10, 0.4, 20]

    change(data, edit)
    targets, left_out = open_split(data, "train2017", masks=False).targets(masks=False)
    assert targets[0]["boxes"] == [[0, 0, 20, 96]] and len(targets[1]["boxes"]) == 1
    assert left_out == [
        "annotation 2 of train2017-0.png, 112 x 96: box [112, 10, 20, 20]",
        "annotation 4 of train2017-1.png, 112 x 96: box [10, 10, 0.4, 20]",
    ]


def test_an_unreadable_image_is_named_and_replaced(data: Path) -> None:
    (data / "train2017" / "train2017-1.png").write_bytes(b"no image")
    Image.new("RGB", (96, 112)).save(data / "train2017" / "train2017-2.png")  # on its side
    image, target, broken = train_images(data)[SampleKey(0, 0, 1)]
    assert [Path(name).name for name, _ in broken] == ["train2017-1.png", "train2017-2.png"]
    assert "it is 96 x 112 pixels, its annotations are for 112 x 96" in broken[1][1]
    assert target["image_id"] == 122  # of train2017-3.png
    split = open_split(data, "train2017", masks=False)
    (images, ids), unreadable = collate([ValImages(split.folder, split.images)[index] for index in range(3)])
    assert ids == [101, -1, -1] and len(images) == 3 and len(unreadable) == 2


def drop(part: str, *keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for key in keys:
            content[part][1].pop(key)

    return edit


def put(part: str, index: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[part][index].update(values)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda content: content["annotations"], r"instances_train2017.json holds a list: COCO's format is an object"),
        (lambda content: content.pop("categories") and content, r"has no list 'categories'.*it holds images, annotations"),
        (drop("annotations", "bbox", "category_id"), r"annotations\[1\] has no category_id, bbox; it holds id, image_id"),
        (drop("images", "width"), r"images\[1\] has no width"),
        (lambda content: content.update(images=[], annotations=[]), r"lists no images: the split is empty"),
        (put("images", 0, id="1"), r"1 images cannot be used: images\[0\] has the id '1', which is no integer"),
        (put("images", 3, height=96.0), r"1 images cannot be used: images\[3\] has the height 96.0, which is no integer"),
        (put("images", 0, id=108), r"1 ids occur more than once in images: 108"),
        (put("images", 2, file_name="gone.jpg"), r"1 of the 6 images in .*json are not in .*train2017: gone.jpg"),
        (put("annotations", 0, category_id=4), r"1 annotations .*: annotation 1 is of category 4"),
        (put("annotations", 0, image_id=5), r"1 annotations .*: annotation 1 is of image 5"),
        (put("annotations", 0, bbox=[1, 2, 3]), r"annotation 1 has the box \[1, 2, 3\]"),
        (put("annotations", 0, bbox=[1, 2, 3, float("nan")]), r"annotation 1 has the box \[1, 2, 3, nan\]"),
        (drop("annotations", "segmentation"), r"1 annotations have no mask .*: annotation 2.*retinanet"),
        (put("annotations", 1, segmentation={"size": [96, 112], "counts": [5, 6]}), r"have no mask of their image's size.*annotation 2"),
    ],
)
def test_annotations_that_cannot_work(edit: Callable[[dict[str, Any]], Any], says: str, data: Path) -> None:
    change(data, edit)
    with pytest.raises(UsageError, match=says):
        open_split(data, "train2017", masks=True)


def test_folders_that_cannot_work(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: there is no such folder"):
        open_split(tmp_path / "nowhere", "train2017", masks=False)
    with pytest.raises(UsageError, match=r"has no test2017 or images/test2017 .* holds annotations, train2017, val2017"):
        open_split(data, "test2017", masks=False)
    (data / "test2017").mkdir()
    with pytest.raises(UsageError, match=r"no annotations/instances_test2017.json .* holds instances_train2017.json, inst"):
        open_split(data, "test2017", masks=False)
    (data / "annotations" / "instances_val2017.json").write_text("{")
    with pytest.raises(UsageError, match=r"instances_val2017.json is not JSON that can be read"):
        open_split(data, "val2017", masks=False)
