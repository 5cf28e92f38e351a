"""Limits: bytes and operations of every layer, and the time that the larger of both takes at least."""

from __future__ import annotations

import math
import sys

import limits
import pytest
import timm
import torch
from atmnet.costs.counting import LAYER_NORM_MACS, macs
from limits import Ceilings, Tokens


def test_stage_1():
    with torch.device("meta"):
        first = limits.stages(timm.create_model("atmnet_t"), 128, (224, 224))[0]
    assert first == Tokens(128, 56, 56, 64, 32) and first.B * first.H * first.W == 401_408
    assert 2 * first.size == 2 * first.offsets == 51_380_224
    layer = limits.token_mix(first)
    assert layer.forward(2).bytes == 3 * 51_380_224 + 2 * layer.weights
    assert layer.backward(2).bytes == 5 * 51_380_224 + 4 * layer.weights


@pytest.mark.parametrize("size", [(224, 224), (230, 353)])
@pytest.mark.parametrize("name", ["atmnet_xt", "atmnet_t", "atmnet_b"])
def test_operations_are_the_profile(name, size):
    """Operations agree but for what the paper counts of norms, and what folding the projection saves."""
    with torch.device("meta"):
        model = timm.create_model(name)
    layers = [layer for part in limits.network(model, 1, size).values() for layer in part]
    norms = saved = 0
    for stage, shape in zip(model.stages, limits.stages(model, 1, size), strict=True):
        norms += sum(2 + (block.offset is not None) for block in stage.blocks) * shape.size
        saved += len(stage.blocks) * max(0, shape.H * shape.W - 3 * shape.C) * shape.C**2
    norms += shape.size
    counted = limits.total(layers, 4, backward=False).flops // 2
    assert counted + saved + LAYER_NORM_MACS * norms == macs(model, size)


def test_weights_are_all_there():
    model = timm.create_model("atmnet_xt")
    layers = {layer.name: layer for part in limits.network(model, 1, (224, 224)).values() for layer in part}
    assert layers["classifier"].weights == sum(p.numel() for p in model.head.parameters())
    for shape, stage in zip(limits.stages(model, 1, (224, 224)), model.stages, strict=True):
        block = stage.blocks[0]
        assert limits.token_mix(shape).weights == sum(p.numel() for p in block.mixer.parameters())
        assert limits.offset_fc(shape).weights == sum(p.numel() for p in block.offset.parameters())


def test_limit_is_the_larger_of_both():
    layer = limits.offset_fc(Tokens(1, 8, 8, 16, 4))
    work = layer.forward(4)
    assert limits.limit([layer], 4, False, Ceilings(1.0, math.inf)) == work.bytes
    assert limits.limit([layer], 4, False, Ceilings(math.inf, 1.0)) == work.flops
    assert limits.limit([layer, layer], 4, True, Ceilings(math.inf, 1.0)) == 6 * work.flops


def test_limits_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["limits.py", "--model", "atmnet-t", "--bandwidth", "3000", "--flops", "700"])
    limits.main()
    printed = capsys.readouterr().out
    assert "at 3000 GB/s and 700.00 TFLOP/s" in printed and "stage 4" in printed
