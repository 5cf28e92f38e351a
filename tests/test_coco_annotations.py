"""COCO's annotation files: what is refused before training, by the id of the annotation, and what is left out and told."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atmnet_train.common.errors import UsageError
from atmnet_train.common.sampling import SampleKey
from atmnet_train.detection import data as detection_data
from atmnet_train.detection.annotations import doubts, open_split
from atmnet_train.detection.data import TrainImages, ValImages
from atmnet_train.detection.evaluate import coco_metrics, evaluated
from atmnet_train.detection.masks import decode, encode, read_counts, usable, wrong_mask
from coco_shapes import write_coco
from faster_coco_eval import COCO
from image_files import HEIGHT, WIDTH, write_turned

NAN, INFINITY = float("nan"), float("inf")
SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
CROSS = encode(torch.eye(96, 112, dtype=torch.uint8)[None])[0]["counts"]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data set, and its annotations as they are."""
    data = write_coco(tmp_path_factory.mktemp("coco") / "data", train=3, val=1)
    return data, (data / "annotations/instances_train2017.json").read_text()


def spoil(content: tuple[Path, str], part: str, **values: Any) -> Path:
    """The second entry of a list with other values: annotation 2, a disc on the first image."""
    data, text = content
    spoilt = json.loads(text)
    spoilt[part][1].update(values)
    (data / "annotations/instances_train2017.json").write_text(json.dumps(spoilt))
    return data


def lengths(counts: Any, size: Any = (96, 112)) -> dict[str, Any]:
    return {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}


@pytest.mark.parametrize(
    "mask",
    [
        *[[[10, 10, 30, bad, 30, 30]] for bad in (NAN, INFINITY, -INFINITY, 1e9, -1e300, 10**30, 10**400, "30", None, True, [30], {})],
        *[[SQUARE[:7]], [SQUARE, [1]], SQUARE, [None], [SQUARE, None], "polygon", 5, None, True, [{}], [[SQUARE]]],
        *[lengths(counts) for counts in (None, 7, [], "", {}, [5, 6], [10752.0], [-5, 10757], [0, NAN], [None], [True], [10**30], ["9"])],
        *[
            lengths(counts)
            for counts in ("nonsense", "\0", "ü", "\ud800", "oooooooooo", CROSS[:-1], CROSS + "0", CROSS + "o", "P" * 40 + "0")
        ],
        *[lengths([10752], size) for size in (None, [112, 96], [96], "96", [[96], 112], [NAN, 112], [96, 112, 1], 5)],
        {},
    ],
    ids=lambda mask: repr(mask)[:40],
)
def test_masks_that_are_none(mask: Any, content: tuple[Path, str]) -> None:
    data = spoil(content, "annotations", segmentation=mask)
    with pytest.raises(UsageError, match=r"1 annotations have no mask of their image's size .*: annotation 2 \(.*retinanet"):
        open_split(data, "train2017", masks=True)
    split = open_split(data, "train2017", masks=False)  # nobody looks at them
    assert len(split.annotations) == 5 and not any("segmentation" in row for row in split.ground_truth["annotations"])


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        *[("annotations", {"iscrowd": bad}, r"annotation 2 has iscrowd .*, not 0 or 1") for bad in ("1", "no", 2, -1, 0.5, [], {}, NAN)],
        *[("annotations", {"area": bad}, r"annotation 2 has the area") for bad in ("9", -1, NAN, INFINITY, 10**400, [], True)],
        *[
            ("annotations", {"bbox": [1, 2, 3, bad]}, r"annotation 2 has the box \[1, 2, 3, .*not \[x, y, width, height\]")
            for bad in (NAN, INFINITY, 10**400, 1e300, "4", None, True, [4])
        ],
        *[("annotations", {"bbox": bad}, r"annotation 2 has the box") for bad in (None, "box", {}, [], 4, [50, 50, -20, -20])],
        *[
            ("annotations", {"id": bad}, r"annotations\[1\] has the id .*no integer from 0 on")
            for bad in (-2, 2.0, "2", [2], None, {}, True, 2**63, 10**100)
        ],
        *[
            ("annotations", {"image_id": bad}, r"annotation 2 is of image .*not listed")
            for bad in (None, [101], {}, "101", 101.0, -1, 2**70)
        ],
        *[("annotations", {"category_id": bad}, r"annotation 2 is of category .*not listed") for bad in (None, [3], "3", 3.0, True)],
        *[("images", {"id": bad}, r"images\[1\] has the id .*no integer") for bad in (-1, [1], 1.5, "x", None, 2**63, 10**30, True)],
        *[("images", {"file_name": bad}, r"images\[1\] has the file_name") for bad in (None, 7, "", ".", "..", [], {}, True)],
        *[
            ("images", {"file_name": bad}, r"1 of the 3 images .* are not in ")
            for bad in ("gone.png", "a/b.png", "\0", "\ud800", "x" * 999)
        ],
        *[("images", {"height": bad}, r"images\[1\] has the height .*no integer from 1 on") for bad in (0, -96, 96.0, "96", None, NAN)],
        *[
            ("images", {"height": h, "width": w}, r"images\[1\] has the size .* of no image that could be opened")
            for h, w in ((2**31, 2**31), (1, 300), (30_000, 30_000))
        ],
        *[("categories", {"id": bad}, r"categories\[1\] has the id .*no integer") for bad in (-3, [3], "3", 2**64, None)],
        *[("categories", {"name": bad}, r"categories\[1\] has the name") for bad in (None, [], {}, 1.5)],
    ],
)
def test_values_that_cannot_be(part: str, values: dict[str, Any], says: str, content: tuple[Path, str]) -> None:
    with pytest.raises(UsageError, match=says):
        open_split(spoil(content, part, **values), "train2017", masks=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, r"is not JSON that can be read: RecursionError"),
        ('{"images":' * 100_000, r"is not JSON that can be read: RecursionError"),
        ('{"images": [' + "9" * 5000 + "]}", r"is not JSON that can be read: "),
        ("", r"is not JSON that can be read"),
        ("\udcff", r"is not JSON that can be read"),
        ("null", r"holds a NoneType"),
        ('{"images": [], "images": []}', r"instances_train2017.json is not JSON .*'images' is given twice in one object"),
        ('{"images": [{"id": 1, "id": 2}]}', r"'id' is given twice"),
        ('{"images": [null], "annotations": [], "categories": []}', r"images\[0\] has no id, .*it holds None"),
        ('{"images": [[[[[[[[[[]]]]]]]]]], "annotations": [], "categories": []}', r"images\[0\] has no id"),
    ],
    ids=range(10),
)
def test_files_that_are_no_annotations(text: str, says: str, content: tuple[Path, str]) -> None:
    (content[0] / "annotations/instances_train2017.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=says):
        open_split(content[0], "train2017", masks=True)


def test_folders_in_place_of_files_and_files_in_place_of_folders(content: tuple[Path, str]) -> None:
    data = content[0]
    (data / "annotations/instances_odd.json").mkdir()
    (data / "plain").touch()
    (data / "odd").mkdir()
    for split in ("odd", "plain"):
        with pytest.raises(UsageError, match=rf"has no .*{split}"):
            open_split(data, split, masks=True)


BESIDE = [[500, 10, 600, 10, 600, 60], [10, -40, 60, -40, 60, 0], [5, 5] * 4, [7, 1, 7, 90, 7, 30], [-99, 50, 50, -99, -99, -99]]
FLAT = [[10.3, 10.1, 50.3, 31.1, 30.3, 20.6], [1, 1, 90, 80, 1, 1], [5, 5, 60, 5, 60, 60, 60, 5], [9.2, 9.2, 9.4, 9.2, 9.4, 9.4]]


@pytest.mark.parametrize(
    "mask", [[], [[]], [[1, 2, 3, 4]], BESIDE, FLAT, lengths([10752]), lengths(encode(torch.zeros(1, 96, 112))[0]["counts"])]
)
def test_a_mask_without_area_is_left_out_and_told(mask: Any, content: tuple[Path, str]) -> None:
    split = open_split(spoil(content, "annotations", segmentation=mask), "train2017", masks=True)
    targets, left_out = split.targets(masks=True)
    assert left_out == ["annotation 2 of train2017-0.png, 112 x 96: a mask without area"]
    assert [len(target["labels"]) for target in targets] == [1, 2, 0]
    truth = COCO(split.ground_truth)
    found = [{"image_id": 101, "category_id": 11, "score": 0.9, "segmentation": lengths(CROSS)}]
    assert coco_metrics(evaluated(truth, found, "segm", [101, 108]))["AP"] == 0  # and the evaluation counts it as missed


def put(part: str, number: int, **values: Any) -> Any:
    return lambda content: content[part][number].update(values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("annotations", 0, bbox=[5, 5, 120, 50]), r"1 objects reach out of their image.*: annotation 1"),
        (put("annotations", 0, segmentation=[[90, 60, 110, 60, 110, 90]]), r"1 objects have another box .*: annotation 1"),
        (lambda content: content["annotations"].append(content["annotations"][0] | {"id": 99}), r"1 objects are listed .*: annotation 99"),
        (put("images", 1, file_name="train2017-0.png"), r"1 files are listed for several images: train2017-0\.png"),
        (put("categories", 0, name="square"), r"1 names stand for several categories: square"),
        (lambda content: content["categories"].append({"id": 9, "name": "cat"}), r"1 categories have no object: cat"),
    ],
)
def test_what_is_hardly_meant_is_told(change: Any, says: str, content: tuple[Path, str]) -> None:
    data, text = content
    spoilt = json.loads(text)
    change(spoilt)
    (data / "annotations/instances_train2017.json").write_text(json.dumps(spoilt))
    (line,) = (line for line in doubts(open_split(data, "train2017", masks=True)) if "another box" in says or "another box" not in line)
    assert re.search(says, line) and "instances_train2017.json: " in line
    (data / "annotations/instances_train2017.json").write_text(text)
    assert doubts(open_split(data, "train2017", masks=True)) == []


@pytest.mark.parametrize(("crowd", "expected"), [(None, 0), (0, 0), (1, 1), (True, 1), (False, 0)])
def test_what_a_crowd_is(crowd: Any, expected: int, content: tuple[Path, str]) -> None:
    split = open_split(spoil(content, "annotations", iscrowd=crowd, area=None), "train2017", masks=True)
    row = split.ground_truth["annotations"][1]
    assert (row["iscrowd"], row["area"]) == (expected, row["bbox"][2] * row["bbox"][3])


def test_polygons_reach_a_little_beyond_their_image(content: tuple[Path, str]) -> None:
    data = spoil(content, "annotations", segmentation=[[-50, -50.5, 300, -50, 300, 300], [1, 2]])
    (target, *_), left_out = open_split(data, "train2017", masks=True).targets(masks=True)
    assert not left_out and target["segmentations"][1] == [[-50, -50.5, 300, -50, 300, 300]]


def test_compressed_run_lengths_are_read_as_the_decoder_reads_them() -> None:
    rng = np.random.default_rng(0)
    for height, width, share in ((1, 1, 1), (7, 5, 0.5), (60, 41, 0.5), (96, 112, 0.02), (300, 500, 0.999), (2000, 1500, 1e-5)):
        mask = torch.from_numpy(rng.random((height, width)) < share)
        flat = np.concatenate([[False], mask.numpy().flatten(order="F")])
        borders = np.flatnonzero(flat[1:] != flat[:-1])
        (piece,) = encode(mask[None])
        assert read_counts(piece["counts"]) == np.diff([0, *borders, height * width]).tolist()
        assert not wrong_mask(piece, height, width) and (not mask.any() or usable(piece, height, width) == piece)


def test_what_counts_as_nothing_is_nothing_to_the_decoder() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        polygon = (rng.integers(-2, 4, 2 * rng.integers(3, 6)) * rng.choice([1, 7.25, 40])).tolist()
        assert bool(usable([polygon], 30, 40)) == bool(decode([[polygon]], 30, 40).any())
    assert usable([bow := [10, 10, 60, 60, 60, 10, 10, 60]], 96, 112) == [bow]  # its halves cancel out


def test_a_mask_that_cannot_be_decoded_names_image_and_annotation(content: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    data = spoil(content, "annotations", iscrowd=0)
    split = open_split(data, "train2017", masks=True)
    images = TrainImages(split.folder, split.targets(masks=True)[0], True, 0, max_broken=1)
    decode = detection_data.decode

    def failing(masks: list[Any], height: int, width: int) -> torch.Tensor:
        if isinstance(masks[0], dict):
            raise RuntimeError("odd counts")
        return decode(masks, height, width)

    monkeypatch.setattr(detection_data, "decode", failing)
    broken = images[SampleKey(0, 0, 0)][2]
    assert broken[0] == (
        str(data / "train2017/train2017-0.png"),
        "annotation 2: its mask cannot be decoded (RuntimeError: odd counts)",
    )


@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_are_turned_upright_where_that_is_the_annotated_size(orientation: int, tmp_path: Path) -> None:
    write_turned(tmp_path / "a.png", orientation)
    record = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    image, number, broken = ValImages(tmp_path, [record])[0]
    assert (number, broken) == (1, []) and image[0, :8, :8].min() == 255 and image[0, :8, 9:18].max() < 80
    if orientation > 4:
        _, number, broken = ValImages(tmp_path, [record | {"width": HEIGHT, "height": WIDTH}])[0]
        assert number == -1 and "it is 36 x 24 pixels, its annotations are for 24 x 36: " in broken[0][1]
