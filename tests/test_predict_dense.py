"""Segmenters and detectors in use: opened as their checkpoints say, and finding on pictures what the programs' evaluation finds."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import atmnet
import numpy as np
import pytest
import torch
from ade_shapes import CLASSES, write_ade
from atmnet.__main__ import main
from atmnet.dense import detection, segmentation
from atmnet.drawing.objects import colour
from atmnet.drawing.regions import palette, tint
from atmnet.images import ImageError
from atmnet.predicting.boxes import Boxes
from atmnet.predicting.folder import picture_names
from atmnet.predicting.masks import Masks
from atmnet.predicting.rle import run_lengths
from atmnet.predicting.segmenting import segment
from atmnet.predicting.tiles import by_tiles, windows
from atmnet.tasks import about
from atmnet_train import ade20k, coco
from atmnet_train.detection.masks import encode
from atmnet_train.segmentation.evaluate import confusion_matrix, scores
from coco_shapes import write_coco
from conftest import reset_accelerate
from faster_coco_eval import COCO
from PIL import Image
from published_segmenter import Published
from torch import Tensor, nn

TINY = ["--model", "atmnet-xt", "--model-kwargs", "depths=(1,1,1,1)", "dims=(16,32,32,32)", "mlp_ratios=(2,2,2,2)", "share=(2,4,4,4)"]
TINY += ["--workers", "0", "--report-to", "none", "--warmup-updates", "0", "--pictures", "0", "--batch-size", "4", "--lr", "1e-3"]


@pytest.fixture(scope="module", autouse=True)
def small_and_in_a_folder_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        for name in ("FPNHead", "UPerHead", "FCNHead"):
            patch.setattr(segmentation, name, partial(getattr(segmentation, name), dim=32))
        patch.setattr(segmentation, "NECKS", {name: partial(neck, dim=32) for name, neck in segmentation.NECKS.items()})
        patch.setattr(coco, "create_detector", partial(detection.create_detector, dim=32, rois_per_image=32))
        patch.setattr("atmnet_train.common.task.draw_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and the segmenter ``run`` trained on it."""
    root = write_ade(tmp_path_factory.mktemp("streets") / "data")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    flags = ["--crop-size", "48", "--neck", "atmfpn", "--iterations", "12", "--eval-interval", "12"]
    ade20k.main([*TINY, *flags, "--data-dir", str(root), "--output", str(root.parent / "run")])
    reset_accelerate()
    return root.parent


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and the detector ``run`` trained on it."""
    root = write_coco(tmp_path_factory.mktemp("things") / "data", train=5, val=3)
    flags = ["--min-size", "64", "96", "--max-size", "128", "--epochs", "1", "--clip-grad", "1"]
    coco.main([*TINY, *flags, "--data-dir", str(root), "--output", str(root.parent / "run")])
    reset_accelerate()
    return root.parent


def evaluated(program: object, root: Path, output: Path, *flags: str) -> dict[str, float]:
    line = ["--eval", str(root / "run"), "--data-dir", str(root / "data"), "--workers", "0", "--pictures", "0", "--output", str(output)]
    program.main([*line, *flags])  # type: ignore[attr-defined]
    reset_accelerate()
    found: dict[str, float] = json.loads((output / "eval.json").read_text())
    return found


@pytest.mark.parametrize("flags", [[], ["--multi-scale"]], ids=["", "multi-scale"])
def test_labels_are_those_of_the_evaluation(streets: Path, tmp_path: Path, flags: list[str]) -> None:
    expected = evaluated(ade20k, streets, tmp_path / "eval", *flags)
    images = streets / "data/images/validation"
    assert main(["predict", "--checkpoint", str(streets / "run"), str(images), "--out", str(tmp_path / "out"), *flags]) == 0
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    for path in sorted(images.iterdir()):
        with Image.open(tmp_path / "out/labels" / f"{path.stem}.png") as found, Image.open(path) as image:
            assert found.mode == "P" and found.size == image.size
            labels = torch.from_numpy(np.array(found).astype(np.int64))
        with Image.open(streets / "data/annotations/validation" / f"{path.stem}.png") as annotation:
            truth = torch.from_numpy(np.array(annotation)) - 1  # 0, which is ignored, becomes 255
        confusion += confusion_matrix(truth, labels - 1, 3)
    assert scores(confusion) == {name: expected[name] for name in ("mIoU", "mAcc", "aAcc")}


def test_detections_are_those_of_the_evaluation(things: Path, tmp_path: Path) -> None:
    evaluated(coco, things, tmp_path / "eval")
    images, out = things / "data/val2017", tmp_path / "out"
    assert main(["predict", "--checkpoint", str(things / "run"), str(images), "--out", str(out)]) == 0
    annotations = json.loads((things / "data/annotations/instances_val2017.json").read_text())
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    described = json.loads((out / "images.json").read_text())
    ours = {image["id"]: Path(image["file_name"]).name for image in described["images"]}

    def by_name(path: Path, names: dict[int, str]) -> list[dict[str, object]]:
        return sorted(
            ({**row, "image_id": names[row["image_id"]]} for row in json.loads(path.read_text())),
            key=lambda row: (row["image_id"], -row["score"]),
        )

    expected = by_name(tmp_path / "eval/detections.json", names)
    assert len(expected) > 3 and by_name(out / "detections.json", ours) == expected
    loaded = COCO(str(out / "images.json")).loadRes(str(out / "detections.json"))  # as others read it
    assert len(loaded.anns) == len(expected) and {row["id"] for row in loaded.dataset["categories"]} == {3, 11}


def test_a_segmenter_is_what_its_checkpoint_says(streets: Path) -> None:
    for place in (streets / "run", streets / "run/last.pt", streets / "run/best.safetensors"):
        model = atmnet.open_model(place)
        assert isinstance(model, segmentation.Segmenter) and not model.training
        described = about(model)
        assert (described.task, described.name) == ("segmentation", "semantic-fpn on atmnet_xt with atmfpn")
        assert (described.classes, described.size, described.mean) == (CLASSES, (48,), (0.485, 0.456, 0.406))
        assert bool(described.metrics) == (place.name != "last.pt")  # whose weights nobody measured
    assert described.metrics.keys() == {"mIoU", "mAcc", "aAcc"}
    with pytest.raises(ValueError, match=r"best\.safetensors holds a segmenter, not a detector: atmnet\.open_segmenter opens it"):
        atmnet.open_detector(streets / "run")
    with pytest.raises(ValueError, match=r"best\.safetensors holds atmnet_xt, not atmnet_t"):
        atmnet.open_segmenter(streets / "run", "atmnet-t")


def test_a_detector_is_what_its_checkpoint_says(things: Path) -> None:
    model = atmnet.open_detector(things / "run")
    described = about(model)
    assert (described.task, described.name) == ("detection", "mask-rcnn on atmnet_xt with fpn")
    assert (described.classes, described.category_ids, described.size) == (["square", "disc"], [3, 11], (96, 128))
    assert {"box_AP", "mask_AP", "images"} <= described.metrics.keys()
    with pytest.raises(ValueError, match=r"best\.safetensors holds a detector, not a classifier"):
        atmnet.open_classifier(things / "run")


@pytest.mark.parametrize("detector", detection.DETECTORS)
def test_every_kind_of_detector_opens_and_finds_what_it_says_itself(detector: str, tmp_path: Path) -> None:
    sizes = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))
    model = detection.create_detector("atmnet_xt", detector, num_classes=3, min_size=64, max_size=96, dim=16, **sizes).eval()
    arguments = [f"{name}={value}" for name, value in sizes.items()]
    said = dict(model="atmnet_xt", detector=detector, num_classes=3, model_kwargs=arguments, min_size=[64], max_size=96)
    atmnet.save(model, tmp_path / "d.safetensors", **said)
    opened = atmnet.open_model(tmp_path / "d.safetensors")
    assert about(opened).classes == about(model).classes == ["class 1", "class 2", "class 3"]
    image = Image.effect_noise((100, 70), 90).convert("RGB")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        (expected,) = model([pixels])
    found = atmnet.predict(opened, image, threshold=0)
    assert torch.equal(found.boxes, expected["boxes"]) and torch.equal(found.labels, expected["labels"])
    assert torch.equal(found.scores, expected["scores"])
    assert (found.windows is None) == (detector == "retinanet")
    for index in range(min(5, len(found.boxes)) if found.windows is not None else 0):
        assert torch.equal(found.mask(index), expected["masks"][index, 0] > 0.5)


def test_the_authors_segmenter(tmp_path: Path) -> None:
    small = Published(dims=(8, 16, 24, 32), dim=32, auxiliary_dim=32, neck_dim=32, fpn_dim=32, num_classes=3)
    named = {"meta": {"CLASSES": ("wall", "sky", "tree")}, "state_dict": small.weights("upernet")}
    torch.save(named, tmp_path / "upernet.pth")
    model = atmnet.open_model(tmp_path / "upernet.pth")
    described = about(model)
    assert (described.name, described.classes, described.size) == ("upernet on atmnet_l", ["wall", "sky", "tree"], (512,))
    assert torch.equal(model.backbone.net.model.stem.weight, named["state_dict"]["backbone.patch_embed.proj.weight"])  # type: ignore[union-attr]


def picture(labels: Tensor, classes: list[str]) -> Masks:
    return Masks(Image.new("RGB", (labels.shape[1], labels.shape[0]), (90, 160, 30)), labels, torch.ones(labels.shape), classes)


def test_the_legend_has_the_colours_of_the_overlay() -> None:
    labels = torch.zeros(600, 800, dtype=torch.int16)
    labels[:, 200:500], labels[:, 500:] = 1, 3
    found = picture(labels, ["[b]sky[/b]", "road", "a\nb \udcff"])
    drawn = np.array(found.draw())
    assert drawn[300, 100].tolist() == [90, 160, 30]  # of no class
    legend = {tuple(pixel) for row in drawn[600:] for pixel in row.tolist()}
    for column, label in ((300, 0), (700, 2)):
        swatch = tint(palette(3)[label])
        assert swatch in legend and np.abs(drawn[300, column].astype(int) - swatch).max() <= 15  # the image's grey is not mid grey
    assert tint(palette(3)[1]) not in legend
    assert [(row["label"], row["share"]) for row in found.rows()] == [(1, 0.375), (3, 0.375)]
    assert np.array_equal(np.array(found.label_image()), labels.numpy()) and json.loads(found.to_json()) == found.to_dict()
    assert found.label_image().convert("RGB").getpixel((300, 9)) == palette(3)[0]
    many = Masks(found.image, labels + 400, torch.ones(labels.shape), [str(label) for label in range(500)])
    assert np.array_equal(np.array(many.label_image()), labels.numpy() + 400)


def test_a_large_picture_is_drawn_smaller_and_its_labels_are_not() -> None:
    labels = torch.ones(100, 5000, dtype=torch.int16)
    found = picture(labels, ["all"])
    assert found.draw().width == 2048 and found.label_image().size == (5000, 100)
    boxes = Boxes(found.image, torch.tensor([[100.0, 10, 4000, 90]]), torch.tensor([0.9]), torch.tensor([1]), classes=["all"])
    assert boxes.draw().size == (2048, 41) and colour(0) in {value for _, value in boxes.draw().getcolors(1 << 20)}


def test_what_is_less_probable_is_left_out(streets: Path, things: Path) -> None:
    image = streets / "data/images/validation/validation_0.jpg"
    model = atmnet.open_model(streets / "run")
    every, sure = atmnet.predict(model, image), atmnet.predict(model, image, threshold=0.6)
    assert (every.labels > 0).all() and torch.equal(sure.labels == 0, every.probabilities < 0.6)
    detector = atmnet.open_model(things / "run")
    image = things / "data/val2017/val2017-0.png"
    few = atmnet.predict(detector, image, threshold=0.2)
    assert len(few.rows()) < len(few.boxes) == len(few.to_coco(1)) and all(row["score"] >= 0.2 for row in few.rows())
    assert len(atmnet.predict(detector, image, threshold=1).draw().getcolors(1 << 20)) > 1


class Edges(nn.Module):
    """Classes by the neighbourhood of a pixel, 5 pixels far."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.avg_pool2d(x[:, :1], 11, 1, 5, count_include_pad=False), x[:, 1:2] / 4, x[:, 2:]], 1)


def test_a_band_at_a_time_is_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    views = [torch.randn(3, 30, 40), torch.randn(3, 45, 60)]
    whole, sure = segment(Edges(), views, (97, 131), mirrored=True)
    monkeypatch.setattr("atmnet.predicting.segmenting.HELD", 3 * 131 * 10)
    bands, probabilities = segment(Edges(), views, (97, 131), mirrored=True)
    torch.testing.assert_close(probabilities, sure)
    assert (bands == whole).float().mean() > 0.999  # but for what is equally probable to rounding


def test_tiles_are_seen_with_what_is_around_them() -> None:
    image = torch.randn(3, 203, 331)
    one = lambda pixels: segment(Edges(), [pixels], pixels.shape[-2:])  # noqa: E731
    expected, sure = one(image)
    labels, probabilities = by_tiles(image, 64, 16, one)
    assert torch.equal(labels.long(), expected)
    torch.testing.assert_close(probabilities.float(), sure, atol=1e-3, rtol=1e-3)
    for length, tile, overlap in ((64, 64, 16), (65, 64, 0), (1000, 64, 32), (70, 64, 16), (63, 64, 16)):
        found = windows(length, tile, overlap)
        assert [one.first for one in found] == [0, *(one.last for one in found[:-1])] and found[-1].last == length
        assert all(0 <= one.begin <= one.first < one.last <= one.end <= length for one in found)
        assert all(one.end - other.begin >= overlap for one, other in pairwise(found))


def test_tiles_of_an_image_of_the_side_that_it_was_trained_for(streets: Path, tmp_path: Path) -> None:
    Image.effect_noise((64, 48), 90).convert("RGB").save(tmp_path / "small.png")
    Image.effect_noise((300, 200), 90).convert("RGB").save(tmp_path / "large.png")
    model = atmnet.open_model(streets / "run")
    assert torch.equal(atmnet.predict(model, tmp_path / "small.png", tile=64).labels, atmnet.predict(model, tmp_path / "small.png").labels)
    line = ["predict", "--checkpoint", str(streets / "run"), str(tmp_path / "large.png"), "--tile", "96", "--overlap", "32"]
    assert main([*line, "--csv", str(tmp_path / "table.csv"), "--multi-scale"]) == 0
    with open(tmp_path / "table.csv", newline="") as file:
        assert sum(int(row["pixels"]) for row in csv.DictReader(file)) == 300 * 200


def test_failures_are_named_and_the_rest_is_done(
    things: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (40, 30)).save(photos / "same.png")
    Image.new("RGB", (40, 30)).save(photos / "same.bmp")
    Image.new("RGB", (50, 30)).save(photos / "too much.png")

    def fail(self: object, pixels: Tensor) -> dict[str, Tensor]:
        if pixels.shape[-1] == 50:
            raise RuntimeError("out of memory: tried to allocate 3 TiB")
        return dict(boxes=torch.tensor([[1.0, 2, 30, 20]]), scores=torch.tensor([0.9]), labels=torch.tensor([2]))

    monkeypatch.setattr("atmnet.predicting.boxes.Detecting._detect", fail)
    line = ["predict", "--checkpoint", str(things / "run"), str(photos), "--out", str(tmp_path / "out")]
    assert main([*line, "--json", "-"]) == 1
    printed, errors = capsys.readouterr()
    found = json.loads(printed)
    assert [set(one) & {"objects", "error"} for one in found] == [{"error"}, {"objects"}, {"objects"}, {"error"}]
    assert found[1]["objects"][0]["name"] == "disc"
    assert "broken.jpg (cannot identify" in errors and "too much.png (in the network: RuntimeError: out of memory" in errors
    assert sorted(path.name for path in (tmp_path / "out/pictures").iterdir()) == ["same.bmp.png", "same.png.png"]
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        assert [bool(row["error"]) for row in csv.DictReader(file)] == [True, False, False, True]
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == found
    assert len(json.loads((tmp_path / "out/detections.json").read_text())) == 2
    assert main([*line[:-2]]) == 1 and "disc" in capsys.readouterr().out  # the table


def test_names_of_pictures_are_their_own() -> None:
    assert picture_names([Path("a/b/c.jpg"), Path("a/d.jpg"), Path("a/d.png")]) == ["b/c.png", "d.jpg.png", "d.png.png"]
    assert picture_names([Path("x/only.jpeg")]) == ["only.png"]


def test_run_lengths_are_cocos() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = [torch.zeros(7, 9), torch.ones(7, 9), torch.zeros(700, 900), *(torch.rand(33, 57, generator=generator) > p for p in (0.1, 0.9))]
    masks[2][20:600, 40:41] = 1
    for mask in masks:
        assert run_lengths(mask) == encode(mask[None])[0]


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--tile", "10"], "tile 10: it must be at least 64"),
        (["--overlap", "8"], "overlap 8 is of tiles: give tile too"),
        (["--tile", "64", "--overlap", "40"], "overlap 40: it must be between 0 and 32, half of tile 64"),
        (["--threshold", "30"], r"threshold 30.0: it must be between 0 and 1"),
        (["--json", "-", "--csv", "-"], "would write into each other"),
        (["--json", "same", "--csv", "./same"], "same: --json, --csv and --out would write into each other"),
        (["--out", ".", "--csv", "predictions.json"], "predictions.json: --json, --csv and --out would write"),
        (["--csv", "nowhere/x.csv"], "--csv nowhere/x.csv: give a file in a folder that exists"),
    ],
)
def test_what_cannot_work_is_refused(streets: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "--checkpoint", str(streets / "run"), str(streets / "data/images/validation"), *flags])
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_python_refuses(streets: Path, things: Path) -> None:
    image = Image.new("RGB", (40, 40))
    with pytest.raises(ValueError, match="tiles and multi_scale are for segmenters; this is a detector"):
        atmnet.predict(atmnet.open_model(things / "run"), image, multi_scale=True)
    with pytest.raises(ValueError, match="cannot tell what a Linear predicts"):
        atmnet.predict(nn.Linear(1, 1).eval(), image)
    model = atmnet.open_model(streets / "run")
    with pytest.raises(TypeError, match=r"an image is a file's path or an image of Pillow's, got a Tensor"):
        atmnet.predict(model, torch.zeros(3, 4, 4))  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="it is 0 x 5 pixels"):
        atmnet.predict(model, Image.new("RGB", (0, 5)))
    with pytest.raises(ValueError, match="the model is in training mode"):
        atmnet.predict(model.train(), image)
