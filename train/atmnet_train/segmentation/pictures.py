"""Predictions laid over their images, beside the annotation, with a legend."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from torchvision.utils import draw_segmentation_masks

from ..common.files import write_atomically

Colour = tuple[int, int, int]


@cache
def palette(number: int) -> list[Colour]:
    """Distinct colours, each as far as can be from those before it; none is grey."""
    levels = torch.linspace(30, 255, 8).round()
    colours = torch.cartesian_prod(levels, levels, levels)
    colours = colours[colours.amax(1) - colours.amin(1) > 40]
    chosen = [0]
    distance = torch.full((len(colours),), torch.inf)
    while len(chosen) < number:
        distance = distance.minimum((colours - colours[chosen[-1]]).norm(dim=1))
        chosen.append(int(distance.argmax()))
    return [(int(red), int(green), int(blue)) for red, green, blue in colours[chosen].tolist()]


def overlay(image: Tensor, labels: Tensor, colours: Sequence[Colour]) -> Tensor:
    """Draw each class of `labels [H, W]` in its colour on the image `[3, H, W]` of bytes; other labels leave it as it is."""
    there = [label for label in labels.unique().tolist() if label < len(colours)]
    if not there:
        return image
    masks = torch.stack([labels == label for label in there])
    return draw_segmentation_masks(image, masks, alpha=0.6, colors=[colours[label] for label in there])


def draw_picture(path: Path, image: Tensor, labels: Tensor, prediction: Tensor, classes: Sequence[str]) -> None:
    colours = palette(len(classes))
    panels = {"image": image, "annotation": overlay(image, labels, colours), "prediction": overlay(image, prediction, colours)}
    height, width = labels.shape
    figure = Figure(figsize=(15, 5 * height / width + 1.2), layout="constrained")
    for axes, (title, panel) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.imshow(rearrange(panel, "c h w -> h w c").numpy())
        axes.set_title(title)
        axes.set_axis_off()
    there = [label for label in torch.cat([labels.unique(), prediction.unique()]).unique().tolist() if label < len(classes)]
    patches = [Patch(color="#{:02x}{:02x}{:02x}".format(*colours[label]), label=classes[label]) for label in there]
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=min(8, len(there)), fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)  # in names, dollars are no formulas
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
