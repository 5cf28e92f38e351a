"""The photometric distortion of mmsegmentation, in bytes as OpenCV computes it."""

import torch
from torch import Tensor
from torchvision import tv_tensors

BRIGHTNESS = 32.0  # that is added or taken away, of 255
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of 180


def draw(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def fifty_fifty() -> bool:
    return bool(torch.rand(()) < 0.5)


class PhotometricDistortion:
    """Brightness, saturation and hue in this order, contrast before the last two or after them, each of half of the images."""

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = image.as_subclass(Tensor)
        if fifty_fifty():
            x = affine(x, shift=draw(-BRIGHTNESS, BRIGHTNESS))
        contrast_first = fifty_fifty()
        if contrast_first:
            x = self.contrast(x)
        if fifty_fifty():
            x = saturate(x, draw(*SATURATION))
        if fifty_fifty():
            x = turn_hue(x, int(torch.randint(-HUE, HUE, ())))
        if not contrast_first:
            x = self.contrast(x)
        return tv_tensors.wrap(x, like=image), labels

    @staticmethod
    def contrast(x: Tensor) -> Tensor:
        return affine(x, draw(*CONTRAST)) if fifty_fifty() else x


def affine(x: Tensor, factor: float = 1.0, shift: float = 0.0) -> Tensor:
    """Rounds down, as NumPy's conversion to bytes does."""
    return (x.float() * factor + shift).clamp(0, 255).byte()


def saturate(image: Tensor, factor: float) -> Tensor:
    hue, saturation, value = to_hsv(image)
    return to_rgb(hue, affine(saturation, factor), value)


def turn_hue(image: Tensor, turn: int) -> Tensor:
    hue, saturation, value = to_hsv(image)
    return to_rgb((hue.int() + turn) % 180, saturation, value)


def to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes of an RGB image `[3, H, W]`: the hue in units of two degrees, the others from 0 to 255."""
    red, green, blue = image.int()
    value, least = image.int().amax(0), image.int().amin(0)
    chroma = value - least
    others = torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    hue = ratio(30, torch.where(value == red, green - blue, others), chroma) % 180
    return hue.byte(), ratio(255, chroma, value).byte(), value.byte()


def ratio(unit: int, part: Tensor, whole: Tensor) -> Tensor:
    """`unit * part / whole`, rounded as OpenCV's fixed point rounds; 0 of nothing."""
    return part * (unit * 2**12 / whole.clamp(min=1)).round().int() + 2**11 >> 12


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The image of bytes that `to_hsv` takes apart, rounded down as by OpenCV."""
    place = (torch.tensor([5.0, 3.0, 1.0])[:, None, None] + hue * (6 / 180)) % 6
    missing = saturation * (1 / 255) * torch.minimum(place, 4 - place).clamp(0, 1)
    return (value * (1 / 255) * (1 - missing) * 255).byte()
