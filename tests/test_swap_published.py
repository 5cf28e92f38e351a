"""swap on the published implementation's mixers: the same parameters and function, on other operators."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path

import pytest
import torch
from published_mixer import ActiveMLP, ATMLayer
from torch import Tensor, nn

from atm_triton import swap, unswap
from atm_triton.swapping.layers import PublishedMixer

KEYS = Path(__file__).parent / "fixtures" / "official_xt_keys.json"


@pytest.fixture
def model() -> ActiveMLP:
    torch.manual_seed(0)
    model = ActiveMLP()
    for module in model.modules():
        if isinstance(module, nn.Linear):  # large weights, and so large offsets and uneven branches
            nn.init.normal_(module.weight, std=0.4)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 48, 36, generator=torch.Generator().manual_seed(1))


def differs(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def results(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    images = images.clone().requires_grad_()
    model.zero_grad()
    y = model(images)
    (y * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum().backward()
    return {"y": y.detach(), "images": images.grad} | {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype,allowed", [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_outputs_and_gradients(model, images, dtype, allowed):
    model, images = model.to(dtype), images.to(dtype)
    expected = results(model, images)
    report = swap(model)
    assert [row.name for row in report.changed] == [f"blocks.{i}.{j}.atm" for i in range(2) for j in range(2)] and not report.left
    assert report.parameters_before == report.parameters_after
    actual = results(model, images)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert differs(actual[name], expected[name]) < allowed, name


def test_the_fixture_is_built_as_the_published_network():
    model = ActiveMLP(dims=(64, 128), depth=2, share=2)
    shapes = {name: list(p.shape) for name, p in model.state_dict().items()}
    published = json.loads(KEYS.read_text())
    first = {
        name: shape
        for name, shape in shapes.items()
        if name.startswith(("patch_embed", "blocks.0.0", "pos_blocks.0")) and "mlp" not in name
    }
    assert first and all(published[name] == shape for name, shape in first.items())


def test_the_same_parameters_under_the_same_names(model, images):
    state, parameters, modules = model.state_dict(), dict(model.named_parameters()), dict(model.named_modules())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    swap(model)
    assert list(model.state_dict()) == list(state)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    results(model, images)
    optimizer.step()
    trained = model.state_dict()
    fresh = ActiveMLP()
    fresh.load_state_dict(trained)
    swap(fresh)
    fresh.load_state_dict(trained)
    assert torch.equal(fresh(images), model(images))
    y = model(images)

    assert [row.name for row in unswap(model).changed] == [f"blocks.{i}.{j}.atm" for i in range(2) for j in range(2)]
    assert dict(model.named_modules()) == modules and all(p is parameters[name] for name, p in model.named_parameters())
    assert differs(model(images), y) < 1e-5


def test_training_goes_on_alike(model, images):
    losses = []
    for network in (copy.deepcopy(model), model):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        losses.append([])
        for step in range(6):
            if network is model and step in (2, 4):
                (swap if step == 2 else unswap)(network)
            loss = network(images).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_hooks_flags_and_attributes_are_shared():
    model = nn.ModuleList([ATMLayer(8, proj_drop=0.5).eval()])
    layer = model[0]
    layer.note = "kept"
    calls: list[str] = []
    before = layer.register_forward_hook(lambda *_: calls.append("before"))
    model.train(False)
    swap(model)
    during = model[0].register_full_backward_hook(lambda *_: calls.append("during"))
    x, offset = torch.randn(1, 4, 4, 8, requires_grad=True), torch.randn(1, 16, 4, 4)
    model[0](x, offset).sum().backward()
    assert calls == ["before", "during"] and model[0].note == "kept" and not model[0].training
    before.remove()
    model.train()
    unswap(model)
    assert model[0] is layer and layer.training and layer.proj_drop.training
    layer(x, offset).sum().backward()
    assert calls == ["before", "during", "during"]
    during.remove()
    assert not layer._forward_hooks and not layer._backward_hooks


def test_layers_without_biases_and_wrong_offsets():
    model = nn.ModuleList([ATMLayer(8, bias=False)])
    x, offset = torch.randn(2, 5, 3, 8), torch.randn(2, 16, 5, 3)
    expected = model[0](x, offset)
    swap(model)
    assert "PublishedMixer" in repr(model) and differs(model[0](x, offset), expected) < 1e-5
    with pytest.raises(ValueError, match=r"offset must be \[B, 2 \* C, H, W\] for x \[2, 5, 3, 8\], got \[2, 8, 5, 3\]"):
        model[0](x, offset[:, :8])
    with pytest.raises(ValueError, match=r"x must be \[B, H, W, 8\]"):
        model[0](x[..., :4], offset)


def test_copies_can_be_unswapped(model, images):
    y = model(images)
    swap(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert differs(other(images), y) < 1e-5
        with torch.no_grad():
            other.blocks[0][0].atm.proj.weight.zero_()
        unswap(other)
        assert not any(isinstance(module, PublishedMixer) for module in other.modules())
        assert not other.blocks[0][0].atm.proj.weight.any()
    assert differs(model(images), y) < 1e-5


def test_autocast(model, images):
    y = model(images)
    swap(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert differs(model(images).float(), y) < 0.1


def test_compile():
    model = nn.ModuleList([ATMLayer(8)])
    inputs = torch.randn(2, 5, 3, 8), torch.randn(2, 16, 5, 3)
    y = model[0](*inputs)
    swap(model)
    with torch.no_grad():
        assert differs(torch.compile(model[0], fullgraph=True, backend="eager")(*inputs), y) < 1e-5


def test_macs_are_counted_alike(model, images):
    report = swap(model, example=images)
    assert report.macs_before == report.macs_after and report.macs_before > 5e5


def _narrow(layer: ATMLayer) -> None:
    layer.fusion.fc1, layer.fusion.fc2 = nn.Linear(8, 1), nn.Linear(1, 24)


def _strided(layer: ATMLayer) -> None:
    layer.atm_h.stride = (2, 2)


@pytest.mark.parametrize(
    "change,reason",
    [
        (_narrow, r"weights .*'fc1': \[1, 8\].* where the published mixer has .*'fc1': \[2, 8\]"),
        (_strided, r"atm_h has stride \(2, 2\)"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_computes_something_else_is_left(change, reason):
    model = nn.ModuleList([ATMLayer(8)])
    change(model[0])
    layer = model[0]
    report = swap(model)
    assert model[0] is layer and not report.changed and len(report.left) == 1
    assert re.search(reason, report.left[0].note)


def test_twice_is_refused(model):
    swap(model)
    with pytest.raises(ValueError, match="run on this library's operators already"):
        swap(model)


def test_a_compiled_replacement_does_not_come_back():
    model = ActiveMLP()
    swap(model)
    layer = model.blocks[0][0].atm
    layer.compile(backend="eager")
    unswap(model)
    assert type(model.blocks[0][0].atm).__name__ == "ATMLayer" and "_compiled_call_impl" not in vars(model.blocks[0][0].atm)
    assert swap(model).left == ()
