"""Adapters and hooks on the published implementation's mixers: swapped, they compute and call what the published code does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from adapters import LoRA, Operators
from published_mixer import ATMLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from atm_triton import swap, unswap

FCS = ["atm_c", "proj", "fusion.fc1", "fusion.fc2"]
AXIAL = ["atm_w", "atm_h"]
FUSED, COMPOSED, PUBLISHED = {"token_mix"}, {"axial_gather", "branch_fusion"}, set()


class Around(nn.Module):
    """An adapter of any layer, called with what that is called with."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.scale = base, nn.Parameter(torch.tensor(1.5))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.base(*inputs) * self.scale


@pytest.fixture
def model() -> nn.ModuleList:
    torch.manual_seed(0)
    model = nn.ModuleList([ATMLayer(8)])
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model


def run(model: nn.Module) -> list[Tensor]:
    """The result, and the gradients of x, the offsets and all parameters."""
    generator = torch.Generator().manual_seed(1)
    x, offset = (torch.randn(shape, generator=generator, requires_grad=True) for shape in ((2, 5, 3, 8), (2, 16, 5, 3)))
    model.zero_grad()
    y = model[0](x, offset)
    (y * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum().backward()
    parameters = sorted(model.named_parameters())
    assert all(p.grad is not None for _, p in parameters)
    return [t.detach().clone() for t in (y, x.grad, offset.grad, *(p.grad for _, p in parameters))]


def operators(model: nn.Module) -> set[str]:
    with torch.no_grad(), Operators() as called:
        model[0](torch.randn(2, 5, 3, 8), torch.randn(2, 16, 5, 3))
    return called.names


def close(actual: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def assert_same_swapped(model: nn.Module, change: Callable[[nn.Module], None], expected_operators: set[str]) -> None:
    """Check that the published code and its replacement compute the same after a change."""
    swapped = copy.deepcopy(model)
    swap(swapped)
    plain = run(swapped)
    assert operators(swapped) == FUSED
    for network in (model, swapped):
        torch.manual_seed(2)
        change(network[0])
    expected = run(model)
    close(run(swapped), expected)
    assert operators(swapped) == expected_operators
    assert (expected[0] - plain[0]).abs().max() > 1e-2
    unswap(swapped)
    close(run(swapped), expected)


@pytest.mark.parametrize("name", FCS)
def test_adapters(model, name):
    assert_same_swapped(model, lambda layer: layer.set_submodule(name, LoRA(layer.get_submodule(name))), COMPOSED)


@pytest.mark.parametrize("name,called", [("fusion", COMPOSED), ("atm_w", PUBLISHED), ("atm_h", PUBLISHED)])
def test_adapters_of_parts_that_are_no_fcs(model, name, called):
    assert_same_swapped(model, lambda layer: layer.set_submodule(name, Around(layer.get_submodule(name))), called)


@pytest.mark.parametrize("name", [*FCS, *AXIAL, "fusion", "fusion.act"])
@pytest.mark.parametrize("before", [True, False], ids=["hooked, then swapped", "swapped, then hooked"])
def test_hooks(model, name, before):
    calls: list[tuple[int, ...]] = []

    def hook(module, inputs, output):
        calls.append(tuple(len(t.shape) for t in inputs))
        return 2 * output

    expected = copy.deepcopy(model)
    expected[0].get_submodule(name).register_forward_hook(hook)
    y = run(expected)
    if before:
        model[0].get_submodule(name).register_forward_hook(hook)
    assert len(swap(model).changed) == 1
    if not before:
        handle = model[0].get_submodule(name).register_forward_hook(hook)
    close(run(model), y)
    assert len(calls) == 2 and calls[0] == calls[1]
    assert operators(model) == (PUBLISHED if name in AXIAL else COMPOSED)
    if not before:
        handle.remove()
        assert operators(model) == FUSED


@pytest.mark.parametrize("name", [*FCS, *AXIAL])
def test_gradients_that_hooks_change_and_pruning(model, name):
    def change(layer: nn.Module) -> None:
        part = layer.get_submodule(name)
        prune.l1_unstructured(part, "weight", 0.5)
        part.register_full_backward_hook(lambda module, dx, dy: (3 * dx[0], *dx[1:]))

    assert_same_swapped(model, change, PUBLISHED if name in AXIAL else COMPOSED)


@pytest.mark.parametrize("name", [*FCS, *AXIAL])
@pytest.mark.parametrize("before", [True, False], ids=["then swapped", "when swapped"])
def test_parametrized_parts_stay_fast(model, name, before):
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    expected = copy.deepcopy(model)
    if not before:
        swap(model)
    for network in (model, expected):
        parametrize.register_parametrization(network[0].get_submodule(name), "weight", Twice())
    if before:
        swap(model)
    close(run(model), run(expected))
    assert operators(model) == FUSED
    parametrize.remove_parametrizations(model[0].get_submodule(name), "weight")
    assert operators(model) == FUSED


def _biased(layer: nn.Module) -> None:
    layer.atm_c = nn.Linear(8, 8)


def _approximate(layer: nn.Module) -> None:
    layer.fusion.act = nn.GELU("tanh")


def _rectified(layer: nn.Module) -> None:
    layer.fusion.act = nn.ReLU()


def _linear(layer: nn.Module) -> None:
    layer.fusion.act = nn.Identity()


def _twice(layer: nn.Module) -> None:
    layer.fusion.drop2 = nn.GELU()


def _scaled(layer: nn.Module) -> None:
    class Scaled(type(layer.fusion)):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    layer.fusion.__class__ = Scaled
    layer.fusion.scale = nn.Parameter(torch.tensor(2.0))


def _unbiased(layer: nn.Module) -> None:
    layer.proj = nn.Linear(8, 8, bias=False)


@pytest.mark.parametrize("before", [True, False], ids=["then swapped", "when swapped"])
@pytest.mark.parametrize(
    "change", [_biased, _approximate, _rectified, _linear, _twice, _scaled, _unbiased], ids=lambda change: change.__name__
)
def test_other_parts(model, change, before):
    if before:
        change(model[0])
    swapped = copy.deepcopy(model)
    assert len(swap(swapped).changed) == 1
    if not before:
        change(model[0])
        change(swapped[0])
        swapped.load_state_dict(model.state_dict())
    close(run(swapped), run(model))
    assert operators(swapped) == (FUSED if change is _unbiased else COMPOSED)


def test_dropout_in_the_fusion(model):
    swap(model)
    model[0].fusion.drop1 = nn.Dropout(0.5)
    assert operators(model) == COMPOSED
    x, offset = torch.randn(2, 5, 3, 8), torch.randn(2, 16, 5, 3)
    assert not torch.equal(model[0](x, offset), model[0](x, offset))
    model.eval()
    assert torch.equal(model[0](x, offset), model[0](x, offset))


@pytest.mark.parametrize(
    "put", [lambda part, t: part.register_parameter("lora_a", nn.Parameter(t)), lambda part, t: part.register_buffer("lora_a", t)]
)
def test_an_axial_adapter_that_cannot_be_told_from_the_class_is_left(model, put):
    put(model[0].atm_h, torch.zeros(2, 8))
    assert "atm_h has lora_a beside weight and bias: merge its adapter first" in swap(model).left[0].note


def test_training_and_evaluation_reach_the_published_code(model):
    class Trained(ATMLayer):
        def forward(self, x: Tensor, offset: Tensor) -> Tensor:
            return super().forward(x, offset) * (2 if self.training else 1)

    model = nn.ModuleList([Trained(8)])
    swap(model)
    model[0].atm_w.register_forward_hook(lambda *_: None)
    x, offset = torch.randn(2, 5, 3, 8), torch.randn(2, 16, 5, 3)
    y = model[0](x, offset)
    close(model.eval()[0](x, offset), y / 2)
    close(copy.deepcopy(model).train()[0](x, offset), y)


@pytest.mark.parametrize("name", ["proj", "atm_h"])
def test_adapters_before_and_after_compiling(model, name):
    swap(model)
    compiled = torch.compile(model[0], fullgraph=True, backend="eager")
    x, offset = torch.randn(2, 5, 3, 8), torch.randn(2, 16, 5, 3)
    for _ in range(2):
        close(compiled(x, offset), model[0](x, offset))
        model[0].set_submodule(name, Around(model[0].get_submodule(name)))
    torch._dynamo.reset()
    close(compiled(x, offset), model[0](x, offset))


def test_attention_with_an_adapter_is_left():
    """The weight alone would begin the mixer without what the adapter has learned."""
    model = timm.create_model("test_vit")
    model.blocks[0].attn.proj = LoRA(model.blocks[0].attn.proj)
    report = swap(model, "*.attn")
    assert {row.name for row in report.left} == {"blocks.0.attn"} and report.changed
    assert "its proj is a LoRA, whose weight is not all that it computes: merge its adapter first" in report.left[0].note


def test_copies(model):
    swap(model)
    model[0].atm_w = Around(model[0].atm_w)
    twin = copy.deepcopy(model)
    close(run(twin), run(model))
    with torch.no_grad():
        twin[0].atm_w.scale.mul_(2)
    assert (run(twin)[0] - run(model)[0]).abs().max() > 1e-2
    unswap(twin)
    assert isinstance(twin[0], ATMLayer) and "_published" not in vars(twin[0])
