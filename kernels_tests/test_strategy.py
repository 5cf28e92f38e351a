"""The way that token_mix takes when compiled: the operator, or plain PyTorch, without a guard on the image's size."""

from __future__ import annotations

import pytest
import torch
from adapters import record

from atm_triton import token_mix
from atm_triton.testing import OPERATORS, Shape, make
from atm_triton.tuning import tables

OPERATOR, PLAIN = {"token_mix"}, set()


def inputs(H: int, W: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    return make(OPERATORS["token_mix"], Shape(2, H, W, 8, 2), dtype, device)


@pytest.mark.parametrize(
    ("H", "W", "dtype", "expected"),
    [
        (7, 9, torch.float32, PLAIN),
        (8, 8, torch.float32, OPERATOR),  # 4 tokens per channel
        (7, 9, torch.bfloat16, OPERATOR),  # whose means are in float32
        (7, 9, torch.float64, OPERATOR),
        (0, 9, torch.float32, OPERATOR),  # the mean of nothing
    ],
)
def test_compiled_for_a_cpu(H, W, dtype, expected):
    compiled, graphs = record(token_mix)
    given = inputs(H, W, dtype=dtype)
    y = compiled(*given)
    assert graphs == [expected]
    torch.testing.assert_close(y, token_mix(*given))


def test_autocast_is_followed():
    compiled, graphs = record(token_mix)
    given = inputs(7, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(*given).dtype == torch.bfloat16
    assert graphs == [OPERATOR]


def test_an_exported_graph_has_the_operator():
    class Mixer(torch.nn.Module):
        def forward(self, *given):
            return token_mix(*given)

    for strict in (False, True):
        graph = torch.export.export(Mixer(), inputs(7, 9), strict=strict).graph
        assert torch.ops.atm_triton.token_mix.default in [node.target for node in graph.nodes]


def test_no_size_is_guarded_on():
    """The first is known, and plain; all others are one graph with the operator."""
    compiled, graphs = record(token_mix)
    for H, W in ((7, 9), (6, 8), (9, 7), (40, 30), (3, 5)):
        compiled(*inputs(H, W))
    assert graphs == [PLAIN, OPERATOR]


def test_what_was_measured_on_a_gpu_decides_there(monkeypatch):
    """Measurements decide for the very size, channels, offsets and dtype, and with or without gradients."""
    size = "5x7/C16/G8/bfloat16"
    table = {f"token_mix_plain/{size}": dict(PLAIN=1), f"token_mix_plain_training/{size}": dict(PLAIN=0)}
    monkeypatch.setitem(tables._tables, torch.device("meta"), table)
    for H, dtype, training, expected in (
        (5, torch.bfloat16, False, PLAIN),
        (5, torch.bfloat16, True, OPERATOR),
        (5, torch.float16, False, OPERATOR),
        (7, torch.bfloat16, False, OPERATOR),
    ):
        torch._dynamo.reset()
        compiled, graphs = record(token_mix)
        with torch.set_grad_enabled(training):
            compiled(*inputs(H, 7, dtype=dtype, device="meta"))
        assert graphs == [expected]
