"""The mixer's gather out of shared memory: to the bit what is gathered from global memory, whatever the length of lines and words."""

from __future__ import annotations

import pytest
import torch
from cases import INTERPRETER, SHAPES, Path, on_gpu

from atm_triton.ops.token_mix import launch
from atm_triton.testing import Shape
from atm_triton.tuning import tables

SHAPES = [shape for shape in SHAPES if shape.B] + [Shape(1, 3, 20, 3, 4), Shape(2, 18, 2, 17, 4)]  # several pieces; more words than a block
FAR = [0.0, 0.5, -1.0, 1.0, 7.25, -7.25, 1e9, -1e9, float("inf"), float("-inf"), float("nan")]


each_path = pytest.mark.parametrize("path", [INTERPRETER, on_gpu], ids=str)


def gathered(path: Path, x: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x, offset = x.to(path.device), offset.to(path.device)
    with path.active():
        return *launch.gather(x, offset, True), *launch.gather(x, offset, False)


def inputs(shape: Shape, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.B, shape.H, shape.W, shape.G * shape.S, generator=generator)
    return x.to(dtype), 3 * torch.randn(*x.shape[:3], 2 * shape.G, generator=generator)


def in_pieces(block_q: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a configuration as if it had been chosen for another size than the one that a graph then meets."""
    look_up, pieces = tables.config, dict(BLOCK_L=2, BLOCK_Q=block_q, ROWS=2)
    monkeypatch.setattr(tables, "config", lambda kernel, *of: look_up(kernel, *of) | (pieces if kernel == "token_mix_gather_lines" else {}))


@each_path
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_from_global_memory(path, dtype, shape):
    y, means, expected, expected_means = gathered(path, *inputs(shape, dtype))
    assert torch.equal(y, expected)
    torch.testing.assert_close(means, expected_means)


@each_path
@pytest.mark.parametrize("block_q", [4, pytest.param(2, marks=pytest.mark.exhaustive), pytest.param(8, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("S", [1, 2, 4])
def test_lines_of_several_pieces(path, S, dtype, block_q, monkeypatch):
    in_pieces(block_q, monkeypatch)
    y, means, expected, expected_means = gathered(path, *inputs(Shape(1, 9, 10, 3, S), dtype))
    assert torch.equal(y, expected)
    torch.testing.assert_close(means, expected_means)


@each_path
@pytest.mark.parametrize("block_q", [4, 16])
@pytest.mark.parametrize("S", [1, 4])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_values_and_offsets_that_are_not_finite(path, S, block_q, monkeypatch):
    """A token gets NaN from what it reads, as by the definition, and not from its neighbours in shared memory."""
    in_pieces(block_q, monkeypatch)
    x, offset = inputs(Shape(1, 9, 11, 3, S), torch.bfloat16)
    for t, every, values in ((x, 7, FAR[-3:]), (offset, 5, FAR)):
        some = t.view(-1)[::every]
        some.copy_(torch.tensor(values).repeat(len(some))[: len(some)])
    y, _, expected, _ = gathered(path, x, offset)
    assert y.isnan().any() and y.isfinite().any()
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
