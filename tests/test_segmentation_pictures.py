"""Colours of classes, and pictures of what a segmenter finds."""

import math
from pathlib import Path

import torch
from atmnet.drawing.regions import oklab, overlay, palette
from atmnet_train.segmentation.pictures import draw_picture
from atmnet_train.segmentation.transforms import IGNORED
from PIL import Image


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
