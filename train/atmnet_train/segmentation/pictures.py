"""Predictions laid over their images, beside the annotation, with a legend."""

from collections.abc import Sequence
from pathlib import Path

import torch
from atmnet.drawing.regions import overlay, palette, tint
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ..common.files import write_atomically


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
        text.set_parse_math(False)  # in names, dollars are no formulas
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
