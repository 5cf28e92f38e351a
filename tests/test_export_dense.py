"""Exported segmenters, and what PyTorch says of detectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import atmnet
import pytest
import torch
from atmnet.exporting import FORMATS, TOLERANCE, export

TINY: dict[str, Any] = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), mlp_ratios=(1, 1, 1, 1), share=(2, 2, 2, 2))
TRACED_LONG = pytest.mark.exhaustive  # a minute or two

pytestmark = pytest.mark.usefixtures("narrow_segmenters")


@pytest.mark.parametrize(
    "format,backbone,head,neck,kwargs",
    [
        ("exported-program", "test_efficientnet", "semantic-fpn", "fpn", {}),
        ("onnx", "test_efficientnet", "upernet", None, {}),
        pytest.param("onnx", "atmnet_xt", "semantic-fpn", "atmfpn", TINY, marks=TRACED_LONG),
        pytest.param("onnx", "atmnet_xt", "upernet", None, TINY, marks=TRACED_LONG),
        pytest.param("exported-program", "atmnet_xt", "upernet", None, TINY, marks=TRACED_LONG),
        pytest.param("aoti", "test_efficientnet", "semantic-fpn", "fpn", {}, marks=TRACED_LONG),
    ],
)
@torch.no_grad()
def test_a_segmenter(tmp_path: Path, format: str, backbone: str, head: str, neck: str | None, kwargs: dict[str, Any]):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = atmnet.create_segmenter(backbone, head, neck, num_classes=3, **kwargs).eval()
    path = tmp_path / f"model{FORMATS[format].suffix}"
    with torch._inductor.config.patch({"cpp.simdlen": 0}):  # choosing vectors takes half of the compilation
        done = export(model, path, format, (32, 48), classes=["sky", "road", "cow"])
    assert done.difference <= TOLERANCE and done.smallest[0] <= 32 and done.smallest[1] <= 48
    assert done.metadata["task"] == "image-segmentation" and json.loads(done.metadata["classes"]) == ["sky", "road", "cow"]
    assert done.metadata["interpolation"] == "bilinear" != model.backbone.net.pretrained_cfg["interpolation"]
    assert json.loads(done.metadata["mean"]) == [0.485, 0.456, 0.406] and json.loads(done.metadata["input_size"]) == [3, 32, 48]
    run = FORMATS[format].open(path)
    for size in ((1, 3, 65, 71), (2, 3, 96, 48)):
        images = torch.randn(size)
        expected = model(images)
        assert (run(images) - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("detector", ["retinanet", *(pytest.param(name, marks=TRACED_LONG) for name in ("mask-rcnn", "cascade-mask-rcnn"))])
def test_of_detectors_pytorch_says_why_not(tmp_path: Path, detector: str, capfd: pytest.CaptureFixture):
    torch.set_num_threads(1)
    model = atmnet.create_detector("test_efficientnet", detector, num_classes=2, min_size=64, max_size=96, dim=16).eval()
    with pytest.raises(ValueError, match="cannot be exported for images of any size: .*data-dependent"):
        export(model, tmp_path / "model.pt2", "exported-program", (64, 96))
    assert list(tmp_path.iterdir()) == [] and "def forward" not in capfd.readouterr().err
