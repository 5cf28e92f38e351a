"""The paper's tables of parameters and MACs, ours beside them: `python -m atmnet tables`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from rich.table import Table
from torch import nn

from ..dense.detection import create_detector
from ..dense.segmentation import create_segmenter
from ..variants import VARIANTS
from .counting import detector_macs, macs

SIZES = {"semantic-fpn": (512, 512), "upernet": (512, 2048)}  # of the images that the paper counts with
DETECTOR_SIZE = (800, 1280)


@dataclass
class Part:
    """One table of the paper: a method on the five ATMNets."""

    number: int
    method: str
    paper: tuple[tuple[float, float], ...]  # parameters (M) and MACs (G), by variant


PARTS = (
    Part(2, "semantic-fpn", ((19.1, 33.1), (30.9, 42.4), (42.4, 57.8), (55.9, 74.7), (79.8, 86.6))),
    Part(3, "upernet", ((45, 889), (57, 927), (69, 988), (82, 1055), (108, 1106))),
    Part(4, "retinanet", ((25, 196), (37, 233), (48, 293), (62, 359), (86, 405))),
    Part(5, "mask-rcnn", ((35, 215), (47, 251), (58, 311), (72, 377), (96, 424))),
    Part(6, "cascade-mask-rcnn", ((73, 693), (85, 730), (96, 790), (110, 856), (134, 902))),
)


@dataclass
class NeckRow:
    """One row of table 7: MACs (G) of a method with FPN and with ATMFPN."""

    name: str
    backbone: str
    method: str
    paper: tuple[float, float]


SWIN = "swin_tiny_patch4_window7_224"
NECK_ROWS = (
    # Segmentation has long had its ResNet-50 with a deep stem; with it, and with it alone, FPN has the paper's MACs.
    NeckRow("resnet50c", "resnet50c", "semantic-fpn", (45.9, 48.9)),
    NeckRow("swin_tiny", SWIN, "semantic-fpn", (47.5, 47.5)),
    NeckRow("atmnet_t", "atmnet_t", "semantic-fpn", (42.4, 41.4)),
    NeckRow("atmnet_l", "atmnet_l", "semantic-fpn", (86.6, 86.6)),
    NeckRow("resnet50", "resnet50", "mask-rcnn", (259.8, 298.9)),
    NeckRow("swin_tiny", SWIN, "mask-rcnn", (267.0, 267.1)),
    NeckRow("atmnet_t", "atmnet_t", "mask-rcnn", (251.1, 247.0)),
    NeckRow("atmnet_l", "atmnet_l", "mask-rcnn", (423.7, 423.8)),
)


@dataclass
class Ablation:
    """One row of table 8, or of figure 2: a model with options of its own, at 224 x 224."""

    name: str
    model: str
    options: dict[str, Any]
    paper: str  # MACs (G), or what the text says of them


ABLATIONS = (
    Ablation("T, baseline", "atmnet_t", dict(offsets="zero"), "3.890"),
    Ablation("T, no PEG", "atmnet_t", dict(peg=False), ""),
    Ablation("T, no PEG", "atmnet_t", dict(peg=False, period=10), "3.924"),
    Ablation("T", "atmnet_t", {}, "3.972"),
    Ablation("xT", "atmnet_xt", {}, "2.2"),
    Ablation("xT_A", "atmnet_xt", dict(offsets="planar"), ""),
    Ablation("xT_A", "atmnet_xt", dict(offsets="planar", share=(1, 1, 1, 1)), "very close"),
    Ablation("xT_B", "atmnet_xt", dict(offsets="three"), ""),
    Ablation("xT_B", "atmnet_xt", dict(offsets="three", share=(1, 1, 1, 1)), "+50 %"),
)
NUMBERS = [1, *(part.number for part in PARTS), 7, 8]

# Table 1: parameters (M), MACs at 224 x 224 (G), ImageNet-1K top-1 (%).
CLASSIFIERS = dict(
    atmnet_xt=("15", "2.2", "79.7"),
    atmnet_t=("27", "4.0", "82.0"),
    atmnet_s=("39", "6.9", "83.1"),
    atmnet_b=("52", "10.1", "83.5"),
    atmnet_l=("76", "12.3", "83.8"),
)


def measure(backbone: str, method: str, neck: str | None = None) -> tuple[float, float]:
    """Parameters (M) and MACs (G) of a segmenter for ADE20K or a detector for COCO; nothing is computed."""
    model: nn.Module
    count: Callable[..., int]
    with torch.device("cpu" if backbone == SWIN else "meta"):  # where older timm cannot make a Swin
        if method in SIZES:
            model, count = create_segmenter(backbone, method, neck, num_classes=150), macs
        else:
            model, count = create_detector(backbone, method, neck or "fpn", num_classes=80), detector_macs
    parameters = sum(p.numel() for p in model.parameters())
    return parameters / 1e6, count(model.eval(), SIZES.get(method, DETECTOR_SIZE)) / 1e9


def cost(model: str, options: dict[str, Any], size: tuple[int, int] = (224, 224)) -> tuple[float, float]:
    """Parameters (M) and MACs (G) of a classifier; nothing is computed."""
    with torch.device("meta"):
        net = timm.create_model(model, **options)
    return sum(p.numel() for p in net.parameters()) / 1e6, macs(net, size) / 1e9


def tables(numbers: list[int]) -> Iterator[Table]:
    """Yield each table as soon as it is counted."""
    if 1 in numbers:
        yield variants()
    for part in PARTS:
        if part.number in numbers:
            yield _part(part)
    if 7 in numbers:
        yield _necks()
    if 8 in numbers:
        yield _ablations()


def variants(size: tuple[int, int] = (224, 224)) -> Table:
    """The five of table 1; MACs at any image size."""
    height, width = size
    caption = "paper: table 1, at 224 x 224, trained on ImageNet-1K"
    numbers = ["parameters (M)", "paper", "MACs (G)", "paper", "top-1 (%), paper"]
    table = _table(f"ATMNet at {height} x {width}", caption, ["model"], numbers)
    for name, (paper_parameters, paper_macs, paper_top1) in CLASSIFIERS.items():
        parameters, count = cost(name, {}, size)
        table.add_row(name, f"{parameters:.2f}", paper_parameters, f"{count:.3f}", paper_macs, paper_top1)
    return table


def _cells(ours: float, paper: float) -> tuple[str, str, str]:
    return f"{ours:.1f}", f"{paper:g}", f"{100 * (ours / paper - 1):+.1f} %"


def _table(title: str, caption: str | None, names: list[str], numbers: list[str]) -> Table:
    table = Table(title=title, caption=caption)
    for heading in names:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _part(part: Part) -> Table:
    height, width = SIZES.get(part.method, DETECTOR_SIZE)
    numbers = ["parameters (M)", "paper", "", "MACs (G)", "paper", ""]
    table = _table(f"Table {part.number}: {part.method} at {height} x {width}", None, ["backbone"], numbers)
    for name, (parameters, count) in zip(VARIANTS, part.paper, strict=True):
        ours = measure(name, part.method)
        table.add_row(name, *_cells(ours[0], parameters), *_cells(ours[1], count))
    return table


def _necks() -> Table:
    numbers = ["FPN", "paper", "", "ATMFPN", "paper", "", "change", "paper"]
    caption = (
        "The neck costs in proportion to the pixels: the paper's +39.1 of a ResNet-50 at 800 x 1280 is +10.0 at 512 x 512, not its +3.0."
    )
    table = _table("Table 7: MACs (G) with FPN and with ATMFPN", caption, ["backbone", "method"], numbers)
    for row in NECK_ROWS:
        fpn, atmfpn = (measure(row.backbone, row.method, neck)[1] for neck in ("fpn", "atmfpn"))
        change = f"{atmfpn - fpn:+.1f}", f"{row.paper[1] - row.paper[0]:+.1f}"
        table.add_row(row.name, row.method, *_cells(fpn, row.paper[0]), *_cells(atmfpn, row.paper[1]), *change)
    return table


def _ablations() -> Table:
    caption = (
        "change: from T or xT. Without PEG, the paper counts one offset layer a stage (period=10); its PEGs alone are 0.006. "
        "Figure 2's xT_A and xT_B are as the paper says with an offset per channel."
    )
    table = _table("Table 8 and figure 2: ablations at 224 x 224", caption, ["ATMNet"], [])
    table.add_column("options", overflow="fold")
    for heading in ("parameters\n(M)", "MACs (G)", "paper", "change"):
        table.add_column(heading, justify="right")
    whole = {row.model: cost(row.model, {})[1] for row in ABLATIONS if not row.options}
    for row in ABLATIONS:
        parameters, count = cost(row.model, row.options)
        change = f"{100 * (count / whole[row.model] - 1):+.1f} %" if row.options else ""
        options = " ".join(f"{name}={value}".replace(" ", "") for name, value in row.options.items())
        table.add_row(row.name, options, f"{parameters:.2f}", f"{count:.3f}", row.paper, change, end_section=row.name == "T")
    return table
