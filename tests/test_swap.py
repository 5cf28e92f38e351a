"""swap and unswap: what is replaced, what is told about it, and that everything goes back."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import Tensor, nn

from atm_triton import ActiveTokenMixer2d, swap, unswap


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, padding=1, groups=4))
        self.heads = nn.ModuleList([nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 5, 1)])
        self.again = self.heads[0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        return self.heads[1](self.again(self.heads[0](x)))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(1))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_same_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    actual = model.state_dict()
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], t) for name, t in expected.items())


def places(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_modules(remove_duplicate=False))


def _heads(name: str, module: nn.Module) -> bool:
    return name.startswith("heads.") and isinstance(module, nn.Conv2d)


@pytest.mark.parametrize(
    "target,changed,left",
    [
        (nn.Conv2d, {"body.0", "body.2", "heads.0", "again"}, {"stem", "heads.1"}),
        ((nn.Conv2d, nn.BatchNorm2d), {"body.0", "body.2", "heads.0", "again"}, {"stem", "heads.1", "body.1"}),
        ("body.*", {"body.0", "body.2"}, {"body.1"}),
        ("again", {"heads.0", "again"}, set()),
        (_heads, {"heads.0", "again"}, {"heads.1"}),
        (["body.0", _heads], {"body.0", "heads.0", "again"}, {"heads.1"}),
    ],
    ids=["class", "classes", "pattern", "shared", "predicate", "several"],
)
def test_targets(model, images, target, changed, left):
    before = places(model)
    report = swap(model, target)
    assert {row.name for row in report.changed} == changed and {row.name for row in report.left} == left
    for name, module in places(model).items():
        if name in changed:
            assert isinstance(module, ActiveTokenMixer2d)
        elif name in before:
            assert module is before[name]
    assert model.again is model.heads[0]
    model(images).sum().backward()


def test_the_report(model, images):
    size = sum(p.numel() for p in model.parameters())
    report = swap(model, nn.Conv2d, example=images)
    kernels = (3 * 8 + 8 * 8 + 8 * 12 // 4 + 2 * 12 * 12) * 9  # two calls of the shared one
    assert report.macs_before == 2 * 8 * 6 * (kernels + 12 * 5)
    assert report.parameters_before == size
    assert report.parameters_after == sum(p.numel() for p in model.parameters()) != size
    assert report.macs_after not in (None, report.macs_before)
    rows = {row.name: row for row in (*report.changed, *report.left)}
    assert rows["body.0"] == ("body.0", "Conv2d", "ActiveTokenMixer2d", "")
    assert rows["body.2"][2:] == ("GroupedMixer2d", "4 groups") and rows["stem"].now == "left" and rows["stem"].note == "stride 2 x 2"
    text = str(report)
    assert "heads.0, again" in text and "1 x 1: it mixes no tokens" in text
    assert "4 changed, 2 left" in text and f"parameters {size / 1e6:.2f} M before" in text and "MACs 0.000 G before" in text
    assert "MACs" not in str(swap(model, "stem"))


@pytest.mark.parametrize(
    "layer,reason",
    [
        (nn.Conv2d(8, 8, 3, padding=0), r"kernel \(3, 3\) with padding \(0, 0\)"),
        (nn.Conv2d(8, 8, 4, padding="same"), r"kernel \(4, 4\) with padding same has no centre"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "'reflect'"),
        (nn.Conv2d(9, 8, 3, padding=1), "share=2 does not divide its 9 channels"),
        (nn.ConvTranspose2d(8, 8, 3, padding=1), "neither a published mixer"),
        (nn.MultiheadAttention(8, 2), "neither a published mixer"),
        (ActiveTokenMixer2d(8), "a mixer of this library already"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_a_mixer_is_left(layer, reason):
    model = nn.Sequential(layer)
    report = swap(model, "0", share=2)
    assert model[0] is layer and not report.changed
    assert re.search(reason, report.left[0].note)


@pytest.mark.parametrize(
    "target,error,message",
    [
        (None, ValueError, "Net has no mixers of the published implementation.*give a target"),
        (nn.Conv3d, ValueError, "Net has no module that matches 'Conv3d'; near: Conv2d"),
        ("bodi.0", ValueError, "'bodi.0'; near: body.0"),
        (lambda name, module: False, ValueError, "Net has no module that matches '<lambda>'$"),
        (nn.Conv2d(3, 3, 3), TypeError, "got a Conv2d: name it"),
    ],
    ids=["none", "class", "pattern", "predicate", "module"],
)
def test_wrong_targets(model, target, error, message):
    before = places(model)
    with pytest.raises(error, match=message):
        swap(model, target)
    assert places(model) == before


def test_the_model_itself_cannot_be_replaced():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    with pytest.raises(ValueError, match=r"the model itself is a Conv2d.*torch.nn.Sequential\(model\)"):
        swap(conv, nn.Conv2d)
    model = nn.Sequential(conv)
    swap(model, nn.Conv2d)
    with pytest.raises(ValueError, match="unswap the model that it is in"):
        unswap(model[0])


def test_nothing_half_done(model):
    before, weights = places(model), state(model)

    def fails_late(name: str, module: nn.Module) -> bool:
        return name == "body.0" or (name == "heads.0" and 1 // 0 == 0)

    with pytest.raises(ZeroDivisionError):
        swap(model, fails_late)
    with pytest.raises(ValueError, match=r"the example \[2, 4, 8, 8\] does not go through the model"):
        swap(model, nn.Conv2d, example=torch.randn(2, 4, 8, 8))
    assert places(model) == before
    assert_same_state(model, weights)


def test_counting_changes_nothing(model, images):
    weights = state(model)
    swap(model, "heads.0", example=images)  # in training, with a BatchNorm
    unswap(model)
    assert_same_state(model, weights)


def test_unswap_puts_everything_back(model, images):
    calls: list[str] = []
    model.body[0].register_forward_hook(lambda *_: calls.append("conv"))
    before, weights, y = places(model), state(model), model.eval()(images)
    swapped = swap(model.train(), nn.Conv2d)
    assert "its hooks rest until unswap" in {row.name: row.note for row in swapped.changed}["body.0"]
    assert not any(name.startswith("_") or "original" in name for name in model.state_dict())
    assert len(list(model.parameters())) > len(weights)
    assert not torch.equal(model.eval()(images), y) and calls == ["conv"]
    report = unswap(model)
    assert {row.name for row in report.changed} == {"body.0", "body.2", "heads.0", "again"} and not report.left
    assert report.changed[0][:3] == ("body.0", "ActiveTokenMixer2d", "Conv2d") and "4 changed, 0 left" in str(report)
    assert (report.parameters_before, report.parameters_after) == (swapped.parameters_after, swapped.parameters_before)
    assert places(model) == before
    assert_same_state(model, weights)
    assert torch.equal(model(images), y) and calls == ["conv", "conv"]  # in evaluation, as the model was meanwhile switched to
    assert unswap(model).changed == ()


def test_what_comes_back_follows_the_model(model, images):
    swap(model, nn.Conv2d)
    model.double().eval()
    unswap(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64} and not any(module.training for module in model.modules())
    assert model(images.double()).dtype == torch.float64


def test_kept_parameters_keep_what_they_learned(model, images):
    swap(model, "heads.0")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images).square().mean().backward()
    stem, head = model.stem.weight.clone(), model.heads[1].weight.clone()
    optimizer.step()
    unswap(model)
    assert not torch.equal(model.stem.weight, stem) and not torch.equal(model.heads[1].weight, head)


def test_copies(model, images):
    before, y = state(model), model.eval()(images)
    swap(model, nn.Conv2d)
    expected = model(images)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), expected)
        unswap(other)
        assert_same_state(other, before)
        assert torch.equal(other(images), y) and other.again is other.heads[0]
    assert torch.equal(model(images), expected)


def test_swaps_add_up(model, images):
    before = places(model)
    swap(model, "body.0")
    report = swap(model, ["body.*", "heads.0"])
    assert {row.name for row in report.changed} == {"body.2", "heads.0", "again"}
    assert "already" in {row.name: row.note for row in report.left}["body.0"]
    model(images)
    unswap(model)
    assert places(model) == before
