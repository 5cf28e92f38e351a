"""Colours and sizes of training images, against what OpenCV and mmsegmentation document, on a photograph."""

import numpy as np
import pytest
import torch
from atmnet.predicting.views import rescale
from atmnet_train.segmentation import colours
from atmnet_train.segmentation.colours import PhotometricDistortion, affine, saturate, to_hsv, to_rgb, turn_hue
from atmnet_train.segmentation.transforms import RandomRescale
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision import tv_tensors


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """Bytes `[3, 427, 640]`; one that scikit-learn brings."""
    return torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1).contiguous()


def array(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy().astype(np.float64)


def hsv(rgb: np.ndarray) -> np.ndarray:
    """OpenCV's definition, its results rounded to bytes: half the hue in degrees, saturation and value of 255."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    value, least = rgb.max(-1), rgb.min(-1)
    difference = np.where(value > least, value - least, 1)
    hue = np.select(
        [value == least, value == red, value == green],
        [0 * red, 60 * (green - blue) / difference, 120 + 60 * (blue - red) / difference],
        240 + 60 * (red - green) / difference,
    )
    hue = np.where(hue < 0, hue + 360, hue)
    saturation = np.where(value > 0, 255 * (value - least) / np.where(value > 0, value, 1), 0)
    return np.stack([np.round(hue / 2) % 180, np.round(saturation), value], -1)


def rgb(of: np.ndarray) -> np.ndarray:
    """Inverse of ``hsv``, rounded down to bytes: the value and the levels below it, dealt out by the sixth of the circle."""
    hue, saturation, value = of[..., 0] / 30, of[..., 1] / 255, of[..., 2]
    sixth, part = np.floor(hue).astype(int), hue - np.floor(hue)
    levels = [value, value * (1 - saturation), value * (1 - saturation * part), value * (1 - saturation * (1 - part))]
    order = [(0, 3, 1), (2, 0, 1), (1, 0, 3), (1, 2, 0), (3, 1, 0), (0, 1, 2)]
    return np.floor(np.select([(sixth == i)[..., None] for i in range(6)], [np.stack([levels[k] for k in row], -1) for row in order]))


def convert(x: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
    """mmsegmentation's: in float32, clipped, rounded down."""
    return np.clip(x.astype(np.float32) * np.float32(alpha) + np.float32(beta), 0, 255).astype(np.uint8).astype(np.float64)


def assert_close(actual: Tensor, expected: np.ndarray) -> None:
    """Compare: all within a step of bytes, and almost all equal; what is whole but for rounding may be rounded down to the next."""
    difference = np.abs(array(actual) - expected)
    assert actual.dtype == torch.uint8 and difference.max() <= 1 and (difference > 0).mean() < 0.05


def test_brightness_and_contrast(photograph: Tensor):
    assert np.array_equal(array(affine(photograph, shift=-31.7)), convert(array(photograph), beta=-31.7))
    assert np.array_equal(array(affine(photograph, 1.3)), convert(array(photograph), 1.3))  # about zero, not about the mean


def test_colours_are_taken_apart_as_opencv_does(photograph: Tensor):
    found, expected = torch.stack(to_hsv(photograph)), hsv(array(photograph))
    difference = np.abs(array(found) - expected)
    difference[..., 0] = np.minimum(difference[..., 0], 180 - difference[..., 0])
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02  # some lie half way
    assert_close(to_rgb(*found), rgb(array(found)))


@pytest.mark.parametrize("factor", [0.5, 1.4])
def test_saturation(factor: float, photograph: Tensor):
    parts = array(torch.stack(to_hsv(photograph)))
    parts[..., 1] = convert(parts[..., 1], factor)
    assert_close(saturate(photograph, factor), rgb(parts))


@pytest.mark.parametrize("turn", [-18, 17])
def test_hue(turn: int, photograph: Tensor):
    parts = array(torch.stack(to_hsv(photograph)))
    parts[..., 0] = (parts[..., 0] + turn) % 180
    assert_close(turn_hue(photograph, turn), rgb(parts))


def test_each_step_is_for_half_of_the_images(photograph: Tensor, monkeypatch: pytest.MonkeyPatch):
    steps: list[tuple[str, float]] = []
    monkeypatch.setattr(colours, "affine", lambda x, factor=1.0, shift=0.0: (steps.append(("affine", shift or factor)), x)[1])
    monkeypatch.setattr(colours, "saturate", lambda x, factor: (steps.append(("saturate", factor)), x)[1])
    monkeypatch.setattr(colours, "turn_hue", lambda x, turn: (steps.append(("hue", turn)), x)[1])
    torch.manual_seed(0)
    image, labels = tv_tensors.Image(photograph[:, :2, :2]), tv_tensors.Mask(torch.zeros(2, 2))
    for _ in range(400):
        same, _ = PhotometricDistortion()(image, labels)
        assert isinstance(same, tv_tensors.Image)
    drawn = {name: [value for step, value in steps if step == name] for name in ("affine", "saturate", "hue")}
    assert 350 < len(drawn["affine"]) < 450 and 150 < len(drawn["saturate"]) < 250 and 150 < len(drawn["hue"]) < 250
    assert all(0.5 <= value <= 1.5 or -32 <= value <= 32 for value in drawn["affine"]) and min(drawn["affine"]) < -25
    assert 0.5 <= min(drawn["saturate"]) < 0.55 and 1.45 < max(drawn["saturate"]) <= 1.5
    assert (min(drawn["hue"]), max(drawn["hue"])) == (-18, 17)


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The value at the place of each new pixel's centre, between the four pixels around it, however much smaller the new image is."""
    for axis, length in ((0, height), (1, width)):
        old = image.shape[axis]
        place = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
        low = np.floor(place).astype(int)
        weight = np.expand_dims(place - low, tuple(set(range(3)) - {axis}))
        image = np.take(image, low, axis) * (1 - weight) + np.take(image, np.minimum(low + 1, old - 1), axis) * weight
    return image


@pytest.mark.parametrize(("ratio", "size"), [(0.5, (171, 256)), (1.37, (468, 701))])
def test_images_are_resized_without_antialiasing(ratio: float, size: tuple[int, int], photograph: Tensor):
    """Resizes to the largest size within the ratio times 1368 x 342, in place of 2048 x 512."""
    resized = rescale(tv_tensors.Image(photograph), 342, ratio)
    assert tuple(resized.shape[1:]) == size
    assert np.abs(array(resized.as_subclass(Tensor)) - bilinear(array(photograph), *size)).max() <= 0.51


def test_the_longer_side_limits_too():
    assert rescale(tv_tensors.Image(torch.zeros(3, 20, 400, dtype=torch.uint8)), 32, 0.5).shape == (3, 3, 64)


def test_labels_are_resized_to_the_nearest():
    labels = tv_tensors.Mask(torch.arange(70, dtype=torch.uint8).reshape(7, 10))
    _, resized = RandomRescale(3, (1.0, 1.0))(tv_tensors.Image(torch.zeros(3, 7, 10, dtype=torch.uint8)), labels)
    rows, columns = np.floor(np.arange(3) * 7 / 3).astype(int), np.floor(np.arange(4) * 10 / 4).astype(int)
    assert np.array_equal(resized.numpy(), labels.numpy()[np.ix_(rows, columns)])
