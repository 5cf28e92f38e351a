"""Segmentation networks: sizes, gradients and compilation."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from atmnet.dense.backbone import Backbone
from atmnet.dense.heads import GRIDS, Doubling, FPNHead, Means, UPerHead
from atmnet.dense.segmentation import Segmenter, create_segmenter
from test_models_compile import pools_by_parity
from torch import Tensor, nn

TINY: dict[str, Any] = dict(depths=(1, 1, 1, 1), dims=(16, 32, 48, 64), mlp_ratios=(2, 2, 2, 2))
NETWORKS = [("semantic-fpn", "fpn"), ("semantic-fpn", "atmfpn"), ("upernet", None)]


pytestmark = pytest.mark.usefixtures("narrow_segmenters")


@pytest.fixture(autouse=True)
def deterministic():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny(head: str, neck: str | None = None, **kwargs: Any) -> Segmenter:
    return create_segmenter("atmnet_xt", head, neck, num_classes=5, **TINY | kwargs)


@pytest.mark.parametrize(("head", "neck"), NETWORKS)
def test_logits_have_the_size_of_the_images(head: str, neck: str | None):
    model = tiny(head, neck).eval()
    with torch.no_grad():
        for size in ((64, 96), (33, 61), (7, 130)):
            assert model(torch.randn(2, 3, *size)).shape == (2, 5, *size)


def test_a_large_image_of_odd_size():
    with torch.no_grad():
        assert tiny("semantic-fpn", "atmfpn").eval()(torch.randn(1, 3, 333, 517)).shape == (1, 5, 333, 517)


@pytest.mark.parametrize("head", ["semantic-fpn", "upernet"])
def test_padding_is_cut_off_after_the_logits_are_enlarged(head: str):
    """Padding where a backbone needs any: zeros on the right and below."""
    model = create_segmenter("test_efficientnet", head, num_classes=5).eval()
    image = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        torch.testing.assert_close(model(image), model(F.pad(image, (0, 26, 0, 14)))[..., :50, :70])


@pytest.mark.parametrize(("head", "neck"), NETWORKS)
def test_gradients_reach_every_parameter(head: str, neck: str | None):
    model = tiny(head, neck).train()
    logits, auxiliary = model(torch.randn(2, 3, 64, 64))
    assert (auxiliary is None) == (head == "semantic-fpn")
    loss = logits.square().mul(torch.rand_like(logits)).sum()
    if auxiliary is not None:
        assert auxiliary.shape == logits.shape
        loss = loss + auxiliary.square().mul(torch.rand_like(auxiliary)).sum()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def compiled(module: nn.Module) -> tuple[Callable[..., Any], list[object]]:
    """The module compiled whole, and a list that gets longer with every compilation."""
    compilations: list[object] = []

    def compile(graph, inputs):
        compilations.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend=compile), compilations


@pytest.mark.parametrize(("head", "train"), [(FPNHead, False), pytest.param(UPerHead, True, marks=pytest.mark.exhaustive)])
def test_twelve_sizes_of_maps_take_two_compilations(head: type[nn.Module], train: bool):
    run, compilations = compiled(head([16] * 4, 5, dim=32).train(train))
    draw = random.Random(0)
    for _ in range(12):
        height, width = draw.randint(2, 6), draw.randint(2, 6)
        logits = run([torch.randn(2, 16, height * 2**i, width * 2**i) for i in (3, 2, 1, 0)])
        assert logits.shape == (2, 5, 8 * height, 8 * width)
        if train:
            logits.square().sum().backward()
    assert len(compilations) <= 2


class Pyramid(Backbone):
    """Pyramid in place of a network, whose compilation is tested elsewhere and takes long."""

    def __init__(self, multiple: int) -> None:
        nn.Module.__init__(self)
        self.multiple, self.channels_last = multiple, False

    def net(self, x: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(x, 4)] * 4


class First(nn.Module):
    """First map in place of a head."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        return maps[0]


@pytest.mark.parametrize("multiple", [pytest.param(1, marks=pools_by_parity), 32])
def test_sizes_of_images_take_two_compilations(multiple: int):
    """Compiles with and without padding, which these sizes need or do not."""
    model = Segmenter(Pyramid(multiple), None, First()).eval()
    run, compilations = compiled(model)
    for height, width in ((50, 70), (33, 161), (64, 70), (45, 96), (128, 64), (96, 96)):
        images = torch.randn(2, 3, height, width)
        torch.testing.assert_close(run(images), model(images))
    assert len(compilations) <= 2


@pytest.mark.parametrize(("head", "neck"), NETWORKS)
def test_bfloat16(head: str, neck: str | None):
    model = tiny(head, neck).eval()
    images = torch.randn(2, 3, 40, 72)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(images)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_means_are_adaptive_average_pooling():
    for size in ((7, 5), (12, 6), (2, 3), (1, 1), (17, 64)):
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        for grid in GRIDS:
            torch.testing.assert_close(Means(grid)(x), F.adaptive_avg_pool2d(x, grid))


def test_semantic_fpn_sums_its_branches_at_stride_4():
    head = FPNHead([8, 8, 8, 8], num_classes=3, dim=32).eval()
    maps = [torch.randn(1, 8, 2 * 2**i, 3 * 2**i) for i in (3, 2, 1, 0)]

    def enlarged(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    with torch.no_grad():
        total = 0
        for doublings, (branch, x) in enumerate(zip(head.scale_heads, maps, strict=True)):
            steps = [module for module in branch if not isinstance(module, Doubling)]
            assert len(steps) == max(1, doublings)
            for step in steps:
                x = step(x) if doublings == 0 else enlarged(step(x))
            total = total + x
        torch.testing.assert_close(head(maps), head.conv_seg(total))


@pytest.mark.parametrize(("backbone", "head", "neck"), [("resnet18", "semantic-fpn", "atmfpn"), ("resnet18", "upernet", None)])
def test_another_backbone(backbone: str, head: str, neck: str | None):
    model = create_segmenter(backbone, head, neck, num_classes=5).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 40, 50)).shape == (1, 5, 40, 50)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"upernet has a feature pyramid of its own and takes no neck, got neck='atmfpn'"):
        tiny("upernet", "atmfpn")
    with pytest.raises(ValueError, match=r"head must be one of semantic-fpn, upernet, got 'fcn'"):
        tiny("fcn")
    with pytest.raises(ValueError, match=r"neck must be one of fpn, atmfpn, got 'pan'"):
        tiny("semantic-fpn", "pan")
