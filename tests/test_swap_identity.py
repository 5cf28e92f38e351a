"""start="identity": the mixer computes what the layer did, and trains; elsewhere it is refused by name."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from atm_triton import ActiveTokenMixer, swap


@pytest.mark.parametrize("share", [1, 2])
@pytest.mark.parametrize(
    "layer,shape",
    [
        (nn.Conv2d(8, 12, 1), (2, 8, 5, 7)),
        (nn.Conv2d(8, 8, 1, bias=False), (2, 8, 5, 7)),
        (nn.Conv2d(8, 12, 1, groups=4), (2, 8, 5, 7)),
        (nn.Linear(8, 12), (2, 5, 7, 8)),
        (nn.Linear(8, 4, bias=False), (2, 5, 7, 8)),
    ],
    ids=str,
)
def test_it_is_exact_and_trains(layer, shape, share):
    torch.manual_seed(0)
    model, x = nn.Sequential(layer), torch.randn(shape)
    expected = model(x)
    swap(model, "0", share=share, start="identity")
    y = model(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None for p in model.parameters()) and model[0].offset.weight.grad.any()


def test_a_network_answers_as_before():
    model = timm.create_model("convnext_atto", num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    report = swap(model, "stages.[23].*.fc2", start="identity")
    assert len(report.changed) == 8
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer,reason",
    [
        (nn.Conv2d(8, 8, 3, padding=1), r"0 \(Conv2d\): kernel \(3, 3\)"),
        (nn.Conv2d(8, 8, 1, stride=2), r"0 \(Conv2d\): kernel \(1, 1\), stride \(2, 2\)"),
        (nn.Conv2d(8, 8, 1, padding=1), r"padding \(1, 1\)"),
        (nn.MultiheadAttention(8, 2), r"0 \(MultiheadAttention\): neither a 1 x 1 Conv2d nor a Linear"),
        (ActiveTokenMixer(8), "a mixer of this library already"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_layers_are_refused_by_name(layer, reason):
    model = nn.Sequential(layer, nn.Conv2d(8, 8, 1))
    with pytest.raises(ValueError, match=f"start='identity' cannot begin with the function of .*{reason}"):
        swap(model, ["0", "1"], start="identity")
    assert model[0] is layer and type(model[1]) is nn.Conv2d


def test_tokens_without_a_map_and_other_starts_are_refused():
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="start must be one of 'weights', 'identity', got 'zero'"):
        swap(model, "0", start="zero")
    with pytest.raises(ValueError, match=r"x must be \[B, H, W, 8\]"):
        swap(model, "0", start="identity", example=torch.randn(2, 5, 8))
    assert type(model[0]) is nn.Linear
