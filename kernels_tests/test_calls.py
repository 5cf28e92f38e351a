"""Operators that a model calls, found without a trace, and the inputs made for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from atm_triton import ActiveTokenMixer, OffsetFC, axial_gather
from atm_triton.tuning import rivals
from atm_triton.tuning.calls import Call, find_calls, fresh_runs
from atm_triton.tuning.calls import Shape as Recorded


class Stack(nn.Module):
    """A module with everything that a forward pass could change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.offset = OffsetFC(8, share=2)

    def forward(self, x):
        x = self.drop(self.norm(x.movedim(3, 1)).movedim(1, 3).contiguous())
        return axial_gather(x, self.offset(x)[..., :4], "w")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_calls_of_a_model(device):
    mixers = ActiveTokenMixer(8, share=2), ActiveTokenMixer(8, share=2), ActiveTokenMixer(8, share=4)
    calls = find_calls(nn.Sequential(*mixers, Stack()).to(device), torch.randn(2, 3, 5, 8, device=device))
    found = [(call.op._schema.name, call.arguments[0].size) for call in calls]
    offset, token_mix = ("atm_triton::offset_fc", (2, 3, 5, 8)), ("atm_triton::token_mix", (2, 15, 8))
    # Two mixers are alike; the third has fewer offsets. The stack's offset layer is like theirs.
    assert found == [offset, token_mix, offset, token_mix, ("atm_triton::axial_gather", (2, 3, 5, 8))]
    last = calls[-1].arguments
    assert last == (Recorded((2, 3, 5, 8), (120, 40, 8, 1), torch.float32), Recorded((2, 3, 5, 4), (120, 40, 8, 1), torch.float32), "w")


@pytest.mark.parametrize("axes", [1, 3])
def test_calls_on_other_axes_run_again(axes, monkeypatch):
    """With what they do not have as it was; and plain PyTorch is a rival of theirs."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    size = (2, 4, 3, 5)[: axes + 1]
    mixer = ActiveTokenMixer(8, share=2, own_offset=False, axes=axes)
    (call,) = find_calls(mixer, torch.randn(*size, 8), torch.randn(*size, 4 * axes))
    ((_, arguments), (_, of_gradient)) = fresh_runs(call, torch.device("cpu"), backward=True)
    assert sum(t is None for t in arguments) == {1: 4, 3: 0}[axes]
    assert sum(t is None for t in of_gradient) == {1: 4, 3: 0}[axes]
    assert rivals.key(call, training=False) == f"token_mix_plain/{'x'.join(map(str, size[1:]))}/C8/G4/float32"
    operator, plain = (step() for step in rivals.compiled(call, torch.device("cpu"), training=True))
    for a, b in zip(operator, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_autocast_is_followed():
    model = nn.Sequential(nn.Linear(8, 8), ActiveTokenMixer(8, share=2))
    with torch.autocast("cpu", torch.bfloat16):
        calls = find_calls(model, torch.randn(1, 2, 3, 8))
    assert [call.arguments[0].dtype for call in calls] == [torch.bfloat16] * 2


def test_a_compiled_model_is_looked_into():
    model = nn.Sequential(OffsetFC(8)).eval()
    model.compile(backend="aot_eager")
    assert [call.op._schema.name for call in find_calls(model, torch.randn(1, 2, 3, 8))] == ["atm_triton::offset_fc"]


def test_fresh_inputs_look_like_what_was_recorded():
    operator = torch.ops.atm_triton.axial_gather.default
    x, offset = Recorded((4, 16, 16, 32), (8192, 512, 32, 1), torch.float32), Recorded((4, 16, 16, 16), (8192, 512, 32, 1), torch.bfloat16)
    runs = fresh_runs(Call(operator, (x, offset, "h")), torch.device("cpu"), backward=True)
    assert [op._schema.name for op, _ in runs] == ["atm_triton::axial_gather", "atm_triton::axial_gather_backward"]
    for t, recorded in zip(runs[0][1], (x, offset), strict=False):
        assert (t.shape, t.stride(), t.dtype) == recorded
    assert runs[0][1][0].std().item() == pytest.approx(1, rel=0.1)
    assert runs[0][1][1].float().std().item() == pytest.approx(3, rel=0.1)  # tokens
    assert runs[1][1][0].std().item() == pytest.approx(1, rel=0.1)  # the upstream gradient
    assert runs[0][1][2] == "h"
    vector, weight = Recorded((64,), (1,), torch.float32), Recorded((32, 64), (64, 1), torch.float32)
    call = Call(torch.ops.atm_triton.offset_fc.default, (Recorded((1, 8, 8, 64), (4096, 512, 64, 1), torch.float32), vector, vector, weight,
                                                         Recorded((32,), (1,), torch.float32), 1e-5))  # fmt: skip
    assert fresh_runs(call, torch.device("cpu"), backward=False)[0][1][3].std().item() == pytest.approx(1 / 8, rel=0.2)
