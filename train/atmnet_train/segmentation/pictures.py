"""Predictions laid over their images, beside the annotation, with a legend."""

from collections.abc import Sequence
from pathlib import Path

import torch
from atmnet.drawing.regions import overlay, palette, tint
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ..common.pictures import MOST, Example, plain, save, to_bytes


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
    patches = [Patch(color="#{:02x}{:02x}{:02x}".format(*tint(colours[label])), label=classes[label]) for label in there]
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=min(8, len(there)), fontsize=8)
    for text in legend.get_texts():
        plain(text)
    save(figure, path)


def batch_examples(images: Tensor, labels: Tensor, classes: int, mean: Sequence[float], std: Sequence[float]) -> list[Example]:
    """A training batch as the network gets it: each image, and beside it the image with its labels."""
    examples = []
    for image, label in zip(images[: MOST // 2], labels[: MOST // 2].cpu(), strict=True):
        pixels = to_bytes(image, mean, std)
        laid = overlay(rearrange(torch.from_numpy(pixels), "h w c -> c h w"), label, palette(classes))
        examples += [Example(pixels), Example(rearrange(laid, "c h w -> h w c").numpy(), "labels")]
    return examples
