"""The description of a swap: another model is swapped alike, from the report or from its file, and then takes the same weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from atmnet.weights.fit import load_strict
from torch import Tensor, nn

from atm_triton import ActiveTokenMixer, Report, swap, unswap

Make = Callable[[], nn.Module]

GRID = '{"changed": [], "left": [], "parameters_before": 1, "parameters_after": 1, "options": {"grid": [3]}}'  # of one side


def resnet() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=3)


def vit() -> nn.Module:
    return timm.create_model("test_vit", img_size=64, num_classes=3)


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@pytest.mark.parametrize(
    "make,target,options",
    [
        (resnet, "*.conv2", {"share": 2}),
        (lambda: nn.Sequential(nn.Conv2d(3, 9, 3, padding=1, groups=3)), "0", {"dense": True}),
        (vit, "*.attn", {"grid": (4, 4)}),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 1)), "0", {"start": "identity"}),
    ],
    ids=["share", "dense", "grid", "identity"],
)
def test_reload(make: Make, target, options, tmp_path):
    model, images = make().eval(), torch.randn(1, 3, 64, 64)
    report = swap(model, target, **options)
    report.save(tmp_path / "swap.json")
    loaded = Report.load(tmp_path / "swap.json")
    assert loaded == report
    for again in (report, loaded):
        other = make().eval()
        assert again.apply(other).changed == report.changed
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(images), model(images))
        unswap(other)
        other.load_state_dict(make().state_dict())


def test_converters_are_given_again():
    converters = {Mine: lambda layer: ActiveTokenMixer(8)}
    report = swap(nn.Sequential(Mine()), Mine, converters=converters)
    other = nn.Sequential(Mine())
    with pytest.raises(ValueError, match=r"cannot be swapped as the report says: 0 \(Mine -> ActiveTokenMixer\)"):
        report.apply(other)
    report.apply(other, converters)
    assert isinstance(other[0], ActiveTokenMixer)


def test_other_models_are_refused_and_stay():
    report = swap(resnet(), "*.conv2")
    with pytest.raises(ValueError, match="VisionTransformer has no layer1.0.conv2.*which the report swapped"):
        report.apply(vit())
    model = resnet()
    model.layer1[0].conv2.stride = (2, 2)
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"cannot be swapped as the report says: layer1.0.conv2 \(Conv2d -> ActiveTokenMixer2d\)"):
        report.apply(model)
    assert dict(model.named_modules()) == before
    with pytest.raises(ValueError, match="of unswap"):
        unswap(model).apply(model)
    with pytest.raises(ValueError, match="nothing to apply"):
        swap(model, nn.BatchNorm2d).apply(model)


NAMES = '{"changed": [[1, "a", "b", ""]], "left": [], "parameters_before": 1, "parameters_after": 1}'
COUNTS = '{"changed": [], "left": [], "parameters_before": "1", "parameters_after": 1}'


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"changed": 3}', GRID, NAMES, COUNTS, "[" * 100_000])
def test_files_that_are_no_reports(tmp_path, content):
    (tmp_path / "swap.json").write_text(content)
    with pytest.raises(ValueError, match=r"swap.json is no report of swap"):
        Report.load(tmp_path / "swap.json")
    with pytest.raises(FileNotFoundError):
        Report.load(tmp_path / "other.json")


def test_weights_of_a_swapped_model_say_so():
    model = resnet()
    swap(model, "*.conv2")
    with pytest.raises(ValueError, match=r"holds mixers where the model has other layers \(layer1.0.conv2, .*swap the model first"):
        load_strict(resnet(), model.state_dict(), "weights")


def test_what_is_inside_another_replacement_is_put_back_into_no_original():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
    names, conv = list(model.state_dict()), model[0]
    swap(model, "0", converters={nn.Conv2d: lambda layer: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))})
    swap(model, "0.0")
    assert [row.name for row in unswap(model).changed] == ["0", "0.0"]
    assert model[0] is conv and list(model.state_dict()) == names


def test_parts_of_mixers_are_left():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), torch.randn(1, 3, 5, 5)
    swap(model, "0")
    y = model(x)
    with pytest.raises(ValueError, match=r"0\.fc_w \(Linear\): part of a mixer of this library"):
        swap(model, nn.Linear, start="identity")
    assert torch.equal(model(x), y)
