"""Folders of classes: what train/imagenet.py makes of them, and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from atmnet_train import imagenet
from atmnet_train.classification.images import Folder, TrainImages, ValImages, class_folders, open_folder
from atmnet_train.common.errors import UsageError
from atmnet_train.common.sampling import SampleKey
from image_files import scene, write_turned
from PIL import Image
from timm.data import create_dataset, create_transform

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "no_curves")


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    return root


def labelled(root: Path, tell: Callable[[str], object] = print) -> list[tuple[str, int]]:
    classes = {name: index for index, name in enumerate(sorted(path.name for path in root.iterdir() if path.is_dir()))}
    source = Folder(root, classes, tell)
    return [(os.path.relpath(file, root), target) for file, target in source.samples]


def test_the_class_is_the_first_folder(tmp_path: Path) -> None:
    root = fill(tmp_path, "cat/1.png", "dog/husky/1.png", "dog/cat/2.png", "dog/3.png")
    assert labelled(root) == [("cat/1.png", 0), ("dog/3.png", 1), ("dog/cat/2.png", 1), ("dog/husky/1.png", 1)]
    tiny = fill(tmp_path / "tiny", "n01/images/n01_0.png", "n02/images/n02_0.png", "n02/images/n02_1.png")  # Tiny ImageNet's layout
    assert [target for _, target in labelled(tiny)] == [0, 1, 1]


def test_samples_of_usual_folders_keep_their_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fill(tmp_path, *(f"{name}/{name}_{number}.{ending}" for name in ("n01", "N02", "n3", "n10") for number in rng.permutation(12)[:9]
         for ending in ("jpg", "JPEG", "png")[number % 3 :][:1]))  # fmt: skip
    classes = {name: index for index, name in enumerate(("n01", "N02", "n3", "n10"))}
    assert Folder(tmp_path, classes).samples == create_dataset("", root=str(tmp_path), search_split=False, class_map=classes).reader.samples


def test_what_is_hidden_is_nothing_and_what_is_passed_over_is_told(tmp_path: Path) -> None:
    root = fill(tmp_path, "cat/1.png", "dog/1.webp", "dog/2.BMP", ".ipynb_checkpoints/1.png", "__MACOSX/cat/._1.png", "cat/._1.png")
    (root / "cat" / "notes.txt").touch()
    fill(root, "loose.png")
    (root / "dog" / "loop").symlink_to("..")
    (root / "dog" / "further").symlink_to("../..")
    (root / "dog" / "other").symlink_to("../cat")
    told: list[str] = []
    images = open_folder(root, {"cat": 0, "dog": 1}, told.append)
    assert [target for _, target in images.source.samples] == [0, 1, 1] and images.distinct == 2
    assert told == [f"{root}: passed over 1 .txt", f"{root}: passed over 1 images that lie in no class folder"]


def test_training_and_evaluation_see_images_upright_and_in_8_bits(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    write_turned(tmp_path / "cat/0.png", 1)
    write_turned(tmp_path / "cat/1.png", 6)
    Image.fromarray((65535 * scene()).round().astype(np.uint16)).save(tmp_path / "cat/2.png")
    source, transform = Folder(tmp_path, {"cat": 0}), create_transform((3, 24, 36), crop_pct=1.0, crop_mode="squash")
    for images in (ValImages(source, transform, 24), [TrainImages(source, transform, 0, 0)[SampleKey(0, 0, i)] for i in range(3)]):
        first, *others = (images[index][0] for index in range(3))
        assert all(torch.allclose(first, other, atol=0.05) for other in others) and first.std() > 0.5


def test_whatever_goes_wrong_in_loading_names_the_image(tmp_path: Path) -> None:
    def transform(image: Image.Image) -> torch.Tensor:
        if image.getpixel((0, 0)) == (0, 0, 0):
            raise KeyError("of a transform")
        return torch.zeros(3, 8, 8)

    source = Folder(fill(tmp_path, "cat/1.png", "cat/2.png"), {"cat": 0})
    Image.new("RGB", (8, 8), "white").save(tmp_path / "cat/2.png")
    expected = [(str(tmp_path / "cat/1.png"), "KeyError: 'of a transform'")]
    assert TrainImages(source, transform, 0, 1)[SampleKey(0, 0, 0)][1:] == (0, expected)
    assert ValImages(source, transform, 8)[0][1:] == (-1, expected, 0)


def test_a_class_whose_folder_is_not_mounted(tmp_path: Path) -> None:
    (fill(tmp_path, "cat/1.png", "cow/1.png") / "dog").symlink_to("/nowhere")
    with pytest.raises(UsageError, match=r"has links that lead nowhere: dog"):
        class_folders(tmp_path)


@pytest.mark.parametrize(
    ("files", "flags", "says"),
    [
        (["train/cat/1.png", "val/cat/1.png"], "", r"has a single class to train on"),
        (["train/cat/1.png", "train/.dog/1.png", "val/cat/1.png"], "", r"has a single class to train on"),
        (["train/cat/1.png", "val/cat/1.png"], "--num-classes 9", r"has a single class to train on"),
        (["train/n01440764/1.png", "val/n01440764/1.png"], "--num-classes 1000", r"has a single class to train on"),
        (["train/cat/.1.png", "train/dog/1.png", "val/cat/1.png"], "", r"1 class folders of .*train hold no images that Pillow reads: cat"),
        (["train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/DOG/1.png"], "", r"1 classes that training does not know: DOG"),
        (["train/.cat/1.png", "val/cat/1.png"], "", r"has no class folders"),
    ],
)
def test_folders_that_cannot_work(files: list[str], flags: str, says: str, tmp_path: Path) -> None:
    fill(tmp_path / "data", *files)
    with pytest.raises(UsageError, match=says):
        imagenet.main(["--model", "test_convnext", "--workers", "0", "--data-dir", str(tmp_path / "data"), *flags.split()])
