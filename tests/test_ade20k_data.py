"""Data in ADE20K's layout: what is read of it, what is refused before training, what a sample is, and how predictions are scored."""

import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from ade_shapes import CLASSES, COLOURS, write_ade
from atmnet_train.common.errors import UsageError
from atmnet_train.common.sampling import SampleKey
from atmnet_train.segmentation.data import check_pairs, class_names, find_pairs, resolve_classes
from atmnet_train.segmentation.evaluate import class_table, confusion_matrix, predict, scores
from atmnet_train.segmentation.labels import read_labels
from atmnet_train.segmentation.pictures import draw_picture, oklab, overlay, palette
from atmnet_train.segmentation.samples import TrainPairs, ValPairs, collate, read_pair
from atmnet_train.segmentation.transforms import IGNORED, DiverseCrop, EvalTransform, TrainTransform
from image_files import write_turned
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_ade(tmp_path / "data")


def check(data: Path, split: str = "training", names: list[str] | None = None, num_classes: int | None = None) -> list[str]:
    pairs = find_pairs(data, split)
    return resolve_classes(names or [], num_classes, pairs, check_pairs(pairs, 0, Accelerator(cpu=True)))


def relabel(path: Path, label: int) -> None:
    labels = np.array(Image.open(path))
    labels[:2, :2] = label
    Image.fromarray(labels).save(path)


def test_pairs_are_found_by_either_name_of_a_split(data: Path) -> None:
    found = [pair.image.name for pair in find_pairs(data, "training")]
    assert found == [f"training_{number}.jpg" for number in range(4)]
    for folder in ("images", "annotations"):
        (data / folder / "training").rename(data / folder / "train")
    assert [pair.annotation.name for pair in find_pairs(data, "training")] == [f"training_{number}.png" for number in range(4)]


def test_labels_begin_at_0_and_0_is_ignored(data: Path) -> None:
    pair = find_pairs(data, "training")[0]
    image, labels = read_pair(pair)
    stored = np.array(Image.open(pair.annotation))
    assert image.shape == (3, 64, 80) and labels.shape == (64, 80) and labels.dtype == torch.uint8
    assert (labels[stored == 0] == IGNORED).all() and (labels[stored > 0] == torch.from_numpy(stored[stored > 0]) - 1).all()


def test_an_annotation_with_a_palette_is_read_by_its_indices(data: Path) -> None:
    pair = find_pairs(data, "training")[0]
    before = read_pair(pair)[1]
    annotation = Image.open(pair.annotation)
    annotation.putpalette(list(range(255, 255 - 12, -1)))
    annotation.save(pair.annotation)
    assert Image.open(pair.annotation).mode == "P"
    assert check(data) and torch.equal(read_pair(pair)[1], before)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: (d / "annotations/training/training_1.png").unlink(), r"1 images have no annotation: .*images/training/training_1\.jpg"),
        (lambda d: (d / "images/training/training_2.jpg").unlink(), r"1 annotations have no image: .*training_2\.png"),
        (lambda d: (d / "images/training").rename(d / "images/other"), r"no folder .*images/training .*holds other, validation.*ADE20K"),
        (lambda d: (d / "images").rename(d / "pictures"), r"no folder .*images/training .*holds nothing"),
        (lambda d: [path.unlink() for path in d.glob("*/training/*")], r"there are no images in .*images/training"),
        (lambda d: relabel(d / "annotations/training/training_3.png", 9), r"1 annotations have labels outside the 3 .*_3\.png \(label 9\)"),
        (
            lambda d: Image.new("L", (80, 63)).save(d / "annotations/training/training_0.png"),
            r"1 of 4 annotations cannot be used: .*training_0\.png is 80 x 63, its image 80 x 64",
        ),
        (
            lambda d: Image.new("RGB", (80, 64)).save(d / "annotations/training/training_0.png"),
            r"training_0\.png: it is an image of mode RGB, not of one channel of 8 bits",
        ),
        (lambda d: (d / "images/training/training_0.jpg").write_text("nothing"), r"training_0\.jpg: cannot identify image file"),
        (
            lambda d: Image.new("L", (80, 64)).save(d / "images/training/training_0.png"),
            r"training_0\.(jpg|png) and .*training_0\.(jpg|png) have one name",
        ),
    ],
)
def test_data_that_cannot_be_used(spoil: Callable[[Path], object], says: str, data: Path) -> None:
    assert check(data, names=CLASSES) == CLASSES
    spoil(data)
    with pytest.raises(UsageError, match=says):
        check(data, names=CLASSES)


def test_a_cut_off_annotation_is_found(data: Path) -> None:
    path = data / "annotations/training/training_0.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UsageError, match=r"training_0\.png: image file is truncated"):
        check(data)


def test_where_the_classes_come_from(data: Path) -> None:
    assert class_names(data, None) == []
    assert check(data) == ["class 1", "class 2", "class 3"]
    assert check(data, num_classes=5)[4] == "class 5"
    (data / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    assert class_names(data, None) == CLASSES
    (data / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.2\t10\t1\twall\n2\t0.1\t6\t1\tbuilding, edifice\t\n")
    assert class_names(data, None) == ["wall", "building, edifice"]
    assert class_names(data, str(data / "classes.txt")) == CLASSES
    with pytest.raises(UsageError, match=r"--num-classes 4, but the data names 3 classes: ground, disc, square"):
        check(data, names=CLASSES, num_classes=4)
    with pytest.raises(UsageError, match=r"--classes .*nowhere.txt: there is no such file"):
        class_names(data, str(data / "nowhere.txt"))
    (data / "classes.txt").write_text("")
    with pytest.raises(UsageError, match=r"names 0 classes"):
        class_names(data, str(data / "classes.txt"))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_labels_are_read_by_the_bit_depth_of_their_file(bits: int, mode: str, tmp_path: Path) -> None:
    stored = (np.arange(64) % 2**bits).astype(np.uint8).reshape(8, 8)
    image = Image.fromarray(stored)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0] * 2 ** (bits - 1))
        image.save(tmp_path / "a.png", bits=bits)
    else:
        write_grey(tmp_path / "a.png", stored, bits)
    with Image.open(tmp_path / "a.png") as found:
        assert found.mode == ("1" if (mode, bits) == ("L", 1) else mode)
    assert np.array_equal(read_labels(tmp_path / "a.png"), stored)


def write_grey(path: Path, values: np.ndarray, bits: int) -> None:
    """Pillow writes grey of 8 bits only."""
    planes = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :]
    rows = np.packbits(planes.reshape(len(values), -1), axis=1)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in chunks)
    )


def test_255_is_ignored_whether_classes_are_given_or_counted(data: Path) -> None:
    relabel(data / "annotations/training/training_3.png", 255)
    assert check(data) == ["class 1", "class 2", "class 3"] and check(data, names=CLASSES) == CLASSES
    labels = read_pair(find_pairs(data, "training")[3])[1]
    assert (labels[:2, :2] == IGNORED).all() and labels.unique().tolist() == [0, 1, 2, IGNORED]


def paint(data: Path, values: tuple[int, ...]) -> None:
    stripes = np.array(values, np.uint8)[np.arange(80) * len(values) // 80]
    for path in data.glob("annotations/training/*"):
        Image.fromarray(np.tile(stripes, (64, 1))).save(path)


@pytest.mark.parametrize(
    ("values", "given", "says"),
    [
        ((0,), {}, r"none of the 4 annotations labels anything: all are 0 or 255"),
        ((0, 255), {}, r"all are 0 or 255, which are ignored. 0 is ignored: background needs a label of its own"),
        ((0, 255), {"num_classes": 2}, r"all are 0 or 255"),
        ((0, 1), {}, r"a single class, with label 1, .* background needs a label of its own"),
        ((0, 1), {"names": ["background", "road"]}, r"a single class, with label 1"),
        ((0, 7, 255), {"num_classes": 9}, r"a single class, with label 7"),
        ((1, 2), {"num_classes": 1}, r"labels 1, 2, but a single class: give --classes or --num-classes"),
        ((0, 85, 170), {}, r"largest label is 170, but of those before it 168 never occur.*--classes or --num-classes"),
        ((1, 4), {}, r"largest label is 4, but of those before it 2 never occur: 2, 3"),
    ],
)
def test_labels_that_are_no_classes(values: tuple[int, ...], given: dict, says: str, data: Path) -> None:
    paint(data, values)
    with pytest.raises(UsageError, match=says):
        check(data, **given)


def test_labels_with_gaps(data: Path) -> None:
    paint(data, (0, 1, 3))
    assert len(check(data)) == 3
    paint(data, (0, 85, 170))
    assert len(check(data, num_classes=170)) == 170


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_image_is_turned_upright_where_that_is_the_annotated_size(orientation: int, data: Path) -> None:
    path = data / "images/training/training_0.jpg"
    write_turned(path, orientation)
    Image.new("L", (36, 24), 2).save(data / "annotations/training/training_0.png")
    assert check(data, names=CLASSES) == CLASSES
    image, _ = read_pair(find_pairs(data, "training")[0])
    assert image[:, 1:6, 1:6].min() > 180 and image[:, 1:6, 10:14].max() < 100  # the bright corner
    if orientation > 4:
        Image.new("L", (24, 36), 2).save(data / "annotations/training/training_0.png")
        with pytest.raises(UsageError, match=r"training_0\.png is 24 x 36, its image 36 x 24 \(each turned upright as its EXIF"):
            check(data, names=CLASSES)


def test_what_else_lies_in_the_folders(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = find_pairs(data, "training")
    for folder in ("images", "annotations"):
        for name in (".ipynb_checkpoints/a.png", "__MACOSX/._a.png", "._training_0.jpg"):
            (data / folder / "training" / name).parent.mkdir(exist_ok=True)
            (data / folder / "training" / name).write_bytes(b"no image")
        (data / folder / "training" / "index.txt").touch()
        (data / folder / "training" / "loop").symlink_to("..")
    (data / "annotations" / "training" / "training_0.jpg").touch()
    assert find_pairs(data, "training") == before
    told = capsys.readouterr().out
    assert "images/training: passed over 1 .txt" in told and "annotations/training: passed over " in told and "1 .jpg" in told
    Image.open(before[0].image).save(before[0].image.with_suffix(".webp"))
    before[0].image.unlink()
    assert find_pairs(data, "training")[0].image.suffix == ".webp"


def painted(labels: Tensor) -> Tensor:
    """An image whose colours tell the labels."""
    table = torch.tensor([COLOURS[label] for label in (1, 2, 3)] + [COLOURS[0]] * 253, dtype=torch.uint8)
    return tv_tensors.Image(table[labels.long()].permute(2, 0, 1).contiguous())


def test_image_and_labels_move_together(data: Path) -> None:
    transform = TrainTransform(48, (0, 0, 0), (1, 1, 1))
    transform.distort = v2.Compose([v2.RandomHorizontalFlip(0.5)])
    torch.manual_seed(0)
    labels = read_pair(find_pairs(data, "training")[0])[1]
    seen = set()
    for _ in range(20):
        image, moved = transform(painted(labels), labels)
        assert image.shape == (3, 48, 48) and image.dtype == torch.float32
        assert moved.shape == (48, 48) and moved.dtype == torch.int64
        padding = (image == 0).all(0)
        assert (moved[padding] == IGNORED).all()
        expected = painted(moved.clamp(max=255)).float() / 255
        right = ((image - expected).abs().amax(0) < 0.02)[~padding].float().mean()
        assert right > 0.8  # but for the edges, which are blurred
        seen |= {(int(padding.sum()), *moved.unique().tolist())}
    assert len(seen) > 3 and any(row[0] for row in seen)


def test_what_lies_outside_the_image_is_0_after_normalisation() -> None:
    image = tv_tensors.Image(torch.full((3, 20, 90), 255, dtype=torch.uint8))
    labels = tv_tensors.Mask(torch.zeros(20, 90, dtype=torch.uint8))
    transform = TrainTransform(64, MEAN, STD, augment=False)
    transform.resize = v2.Identity()
    image, moved = transform(image, labels)
    assert torch.allclose(image[:, :20], ((1 - torch.tensor(MEAN)) / 0.2)[:, None, None].expand(3, 20, 64))
    assert not image[:, 20:].any() and (moved[20:] == IGNORED).all() and not moved[:20].any()


def test_without_augmentation_only_the_crop_is_random(data: Path) -> None:
    image, labels = read_pair(find_pairs(data, "validation")[0])
    transform = TrainTransform(64, MEAN, STD, augment=False)
    crops = [transform(image, labels)[0] for _ in range(8)]
    whole = EvalTransform(64, MEAN, STD)(image)[0]
    assert whole.shape == (3, 64, 80)
    assert all(any(torch.equal(crop, whole[..., left : left + 64]) for left in range(17)) for crop in crops)


def test_a_crop_of_mostly_one_class_is_drawn_again() -> None:
    labels = tv_tensors.Mask(torch.zeros(100, 100, dtype=torch.uint8))
    labels[60:, 60:] = 1
    image = tv_tensors.Image(labels[None].expand(3, -1, -1))
    torch.manual_seed(0)

    def diverse(part: Tensor) -> bool:
        return 0.25 < part.float().mean() < 0.75

    ours = sum(diverse(DiverseCrop(40)(image, labels)[1]) for _ in range(60))
    plain = sum(diverse(v2.RandomCrop(40)(labels)) for _ in range(60))
    assert ours > 2 * plain > 0
    labels[:] = IGNORED  # nothing to be diverse about
    assert DiverseCrop(40)(image, labels)[1].shape == (40, 40)


def test_a_sample_depends_on_its_place_alone(data: Path) -> None:
    samples = TrainPairs(find_pairs(data, "training"), TrainTransform(48, MEAN, STD), seed=3, max_broken=1)
    (first, labels), broken = samples[SampleKey(2, 7, 1)]
    assert not broken
    torch.rand(5)
    (again, labels_again), _ = samples[SampleKey(2, 7, 1)]
    assert torch.equal(first, again) and torch.equal(labels, labels_again)
    for other in (SampleKey(2, 8, 1), SampleKey(3, 7, 1), SampleKey(2, 7, 2)):
        assert not torch.equal(first, samples[other][0][0])


def test_an_unreadable_image_is_replaced_and_named(data: Path) -> None:
    path = data / "images/training/training_1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    samples = TrainPairs(find_pairs(data, "training"), TrainTransform(48, MEAN, STD), seed=3, max_broken=1)
    (image, labels), broken = samples[SampleKey(0, 0, 1)]
    assert torch.equal(image, samples[SampleKey(0, 0, 2)][0][0]) and broken[0][0] == str(path)
    batch, unreadable = collate([samples[SampleKey(0, 0, index)] for index in (0, 1)])
    assert batch[0].shape == (2, 3, 48, 48) and batch[1].shape == (2, 48, 48) and unreadable == broken
    strict = TrainPairs(find_pairs(data, "training"), TrainTransform(48, MEAN, STD), seed=3, max_broken=0)
    assert (strict[SampleKey(0, 0, 1)][0][1] == IGNORED).all()


def test_views_of_an_evaluation() -> None:
    views = EvalTransform(32, MEAN, STD, (0.5, 1.0, 1.75))
    assert [tuple(view.shape) for view in views(tv_tensors.Image(torch.zeros(3, 60, 90, dtype=torch.uint8)))] == [
        (3, 16, 24), (3, 32, 48), (3, 56, 84)
    ]  # fmt: skip
    assert views(tv_tensors.Image(torch.zeros(3, 20, 400, dtype=torch.uint8)))[1].shape[2] == 128


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_image_counts_once_and_all_processes_have_equally_many_turns(processes: int, data: Path) -> None:
    path = data / "images/validation/validation_1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    shares = [ValPairs(find_pairs(data, "validation"), EvalTransform(32, MEAN, STD), processes, process) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1
    turns = [share[turn] for share in shares for turn in range(len(share))]
    assert sorted(whole.number for whole, _ in turns if whole.number is not None) == [0, 2]
    assert {name for _, unreadable in turns for name, _ in unreadable} == {str(path)}
    assert {tuple(whole.labels.shape) for whole, _ in turns if whole.number is not None} == {(64, 80), (84, 100)}


def test_scores_are_those_of_counting_pixel_by_pixel() -> None:
    labels = torch.tensor([[0, 0, 1], [1, 2, IGNORED]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 1, 1], [1, 0, 3]])
    confusion = confusion_matrix(labels, prediction, 5)
    assert confusion[:3, :3].tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]] and confusion.sum() == 5
    rows = class_table(confusion, ["a", "b", "c", "d", "e"])
    assert [row["IoU"] for row in rows] == [pytest.approx(100 / 3), pytest.approx(200 / 3), 0, None, None]
    assert [row["Acc"] for row in rows] == [50, 100, 0, None, None]
    assert [row["pixels"] for row in rows] == [2, 2, 1, 0, 0]
    assert scores(confusion) == pytest.approx({"mIoU": 100 / 3, "mAcc": 50, "aAcc": 60})
    # A class that is predicted where it is not has an IoU, of 0, but no accuracy.
    wrong = class_table(confusion_matrix(torch.zeros(1, 2), torch.tensor([[0, 4]]), 5), "abcde")[4]
    assert wrong["IoU"] == 0 and wrong["Acc"] is None


class Thresholds(nn.Module):
    """Class 0 where the image is dark, class 1 where it is bright on the left half, class 2 where on the right half."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, 0] > 0
        left = (torch.arange(x.shape[3]) < x.shape[3] / 2).expand_as(bright)
        return torch.stack([~bright, bright & left, bright & ~left], 1) * 9.0


def test_predictions_over_views_and_mirror_images() -> None:
    view = torch.full((3, 8, 16), -1.0)
    view[:, :, 1:3] = 1  # on the left: mirrored, it is on the right
    single = predict(Thresholds(), [view], (16, 32), mirrored=False)
    assert single.shape == (16, 32) and (single[:, 3:5] == 1).all() and not single[:, 8:].any()
    both = predict(Thresholds(), [view, view], (16, 32), mirrored=True)
    assert (both[:, 3:5] > 0).all() and not both[:, 8:].any()  # as likely 1 as 2, but never 0
    assert torch.equal(predict(Thresholds(), [view.flip(-1)], (16, 32), mirrored=True) > 0, both.flip(-1) > 0)


def test_colours_are_distinct() -> None:
    colours = torch.tensor(palette(150)).float()
    assert palette(11) == palette(150)[:11]
    hues = oklab(colours)
    assert (torch.cdist(hues, hues) + torch.eye(150)).min() > 0.03
    few = oklab(torch.tensor(palette(12)).float())
    assert (torch.cdist(few, few) + torch.eye(12)).min() > 0.15  # those of a street scene look nothing like each other


def test_pictures(tmp_path: Path) -> None:
    image = torch.full((3, 20, 30), 100, dtype=torch.uint8)
    labels = torch.full((20, 30), IGNORED, dtype=torch.uint8)
    assert torch.equal(overlay(image, labels, palette(3)), image)
    labels[:, 10:] = 1
    drawn = overlay(image, labels, palette(3))
    assert torch.equal(drawn[:, :, :10], image[:, :, :10])
    assert drawn[:, 0, 20].tolist() == [math.floor(0.3 * round(80 + 100 * 120 / 255) + 0.7 * part) for part in palette(3)[1]]
    draw_picture(tmp_path / "pictures" / "a.png", image, labels, labels.long().clamp(max=1), ["x", "[/b]$y$", "$z"])
    with Image.open(tmp_path / "pictures" / "a.png") as picture:
        assert picture.width > 1000 and len(picture.getcolors(1 << 20)) > 4
