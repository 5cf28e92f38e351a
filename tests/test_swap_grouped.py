"""Mixers of grouped and depthwise convolutions: their channels keep to their groups, and the model to its size."""

from __future__ import annotations

import pytest
import timm
import torch
from adapters import Operators
from torch import nn

from atm_triton import ActiveTokenMixer2d, swap, unswap
from atm_triton.swapping.grouped import GroupedMixer2d


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def net(groups: int = 4, dim: int = 8, out_dim: int = 12) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, out_dim, 3, padding=1, groups=groups))


@pytest.mark.parametrize("groups,share", [(4, 1), (4, 2), (4, 4), (8, 1), (8, 2)])
def test_channels_keep_to_their_groups(groups, share):
    model = net(groups, out_dim=16)
    swap(model, "0", share=share)
    mixer = model[0]
    x = torch.randn(2, 8, 5, 7, requires_grad=True)
    offset = 2 * torch.randn(2, 16 // share, 5, 7)
    for p in mixer.parameters():
        nn.init.normal_(p)
    (dx,) = torch.autograd.grad(mixer(x, offset)[:, : 16 // groups].sum(), x)  # of the first group
    first = 8 // groups
    assert dx[:, :first].any() and not dx[:, first:].any()


def test_offsets_are_predicted_in_groups_and_come_first_along_w():
    model = net(4, out_dim=8)
    swap(model, "0", share=2)
    offset = model[0].offset
    assert offset.weight.shape == (8, 2)  # [2 offsets of 4 groups, channels of a group]
    with torch.no_grad():
        offset.bias.copy_(torch.arange(8.0))
        offset.weight.zero_()
    assert offset(torch.randn(1, 2, 3, 8))[0, 0, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_grouped_and_dense_weights_compute_the_same():
    model = net()
    swap(model, "0")
    grouped, dense = model[0], ActiveTokenMixer2d(8, out_dim=12)
    x, offset = torch.randn(2, 8, 5, 7), torch.randn(2, 16, 5, 7)
    nn.init.zeros_(dense.logits.fc2.weight)
    with torch.no_grad():
        for name in ("fc_w", "fc_h", "fc_c", "proj"):
            getattr(dense, name).weight.copy_(torch.block_diag(*getattr(grouped, name).weight.chunk(4)))
        dense.proj.bias.copy_(grouped.proj.bias)
    torch.testing.assert_close(grouped(x, offset), dense(x, offset))


def test_depthwise_networks_keep_their_size():
    model = timm.create_model("efficientnet_b0")
    report = swap(model, "*.conv_dw", example=torch.zeros(1, 3, 224, 224))
    assert len(report.changed) == 12 and report.warning is None
    assert 0.9 < report.parameters_after / report.parameters_before < 1.1
    assert 0.9 < report.macs_after / report.macs_before < 1.1


def test_dense_is_told_and_warned_of():
    model = net(8, out_dim=8)
    report = swap(model, "0", dense=True)
    assert not isinstance(model[0], GroupedMixer2d)
    assert report.changed[0].note == "every channel reaches every other"
    assert report.warning in str(report) and "times the parameters" in str(report)


def test_it_trains_compiles_and_goes_back():
    model = net(dim=8, out_dim=8)
    conv, x = model[0], torch.randn(2, 8, 5, 7)
    swap(model, "0")
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad(), Operators() as called:
        y = model(x)
    assert called.names == {"axial_gather", "branch_fusion"}
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(x).float() - y).abs().max() < 0.1
    unswap(model)
    assert model[0] is conv
