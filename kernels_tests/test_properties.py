"""Properties that hold for any input, searched by hypothesis, on the plain path and on the real kernels in the interpreter."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from cases import INTERPRETER, PLAIN
from hypothesis import strategies as st
from oracles import deformable_gather, dense_gather
from searches import search
from torch.testing import assert_close

from atm_triton import axial_gather, branch_fusion, offset_fc
from atm_triton.testing import OPERATORS, Shape, assert_as_exact, exact_gradients, gradients, make

shapes = st.builds(Shape, st.integers(1, 2), st.integers(1, 9), st.integers(1, 19), st.integers(1, 5), st.integers(1, 5))
seeds = st.integers(0, 2**31 - 1)
axes = st.sampled_from("wh")
searched = partial(search, 20, 40)
on_both_paths = pytest.mark.parametrize("path", [PLAIN, INTERPRETER], ids=str)


def random(shape: Shape, seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    x, offset = make(OPERATORS["axial_gather_w"], shape, dtype, "cpu", seed)
    return x.detach(), offset.detach()


def along(x: torch.Tensor, axis: str) -> torch.Tensor:
    """The gather's axis as the third."""
    return x if axis == "w" else x.transpose(1, 2)


@on_both_paths
@searched(shape=shapes, seed=seeds, axis=axes)
def test_offset_zero_is_the_identity(path, shape, seed, axis):
    x, offset = random(shape, seed)
    with path.active():
        assert torch.equal(axial_gather(x, torch.zeros_like(offset), axis), x)


@on_both_paths
@searched(shape=shapes, seed=seeds, axis=axes, shift=st.integers(-20, 20))
def test_integer_offsets_shift(path, shape, seed, axis, shift):
    x, offset = random(shape, seed)
    with path.active():
        y = along(axial_gather(x, torch.full_like(offset, shift), axis), axis)
    line = along(x, axis)
    expected = torch.zeros_like(line)
    length = line.shape[2]
    if abs(shift) < length:
        expected[:, :, max(0, -shift) : length - max(0, shift)] = line[:, :, max(0, shift) : length - max(0, -shift)]
    assert torch.equal(y, expected)


@on_both_paths
@searched(shape=shapes, seed=seeds, axis=axes, scale=st.floats(-8, 8))
def test_linear_in_x(path, shape, seed, axis, scale):
    x, offset = random(shape, seed)
    other, _ = random(shape, seed + 1)
    with path.active():
        together = axial_gather(x + scale * other, offset, axis)
        apart = axial_gather(x, offset, axis) + scale * axial_gather(other, offset, axis)
    assert_close(together, apart, rtol=1e-4, atol=1e-4)


@on_both_paths
@searched(shape=shapes, seed=seeds, axis=axes, value=st.floats(-100, 100, width=32))
def test_a_constant_stays_constant_inside(path, shape, seed, axis, value):
    x, offset = random(shape, seed)
    x = torch.full_like(x, value)
    length = along(x, axis).shape[2]
    position = along(torch.arange(length)[None, None, :, None].expand(1, 1, length, 1), "w")
    target = position + along(offset, axis)
    inside = ((target >= 0) & (target <= length - 1)).repeat_interleave(shape.S, -1)
    with path.active():
        y = along(axial_gather(x, offset, axis), axis)
    assert_close(y[inside], torch.full_like(y[inside], value))
    outside = ((target <= -1) | (target >= length)).repeat_interleave(shape.S, -1)
    assert (y[outside] == 0).all()


@on_both_paths
@searched(shape=shapes, seed=seeds, axis=axes)
def test_the_written_out_sum(path, shape, seed, axis):
    x, offset = random(shape, seed)
    with path.active():
        y = axial_gather(x, offset, axis)
    assert_close(y, dense_gather(x.double(), offset.double(), axis).float(), rtol=1e-5, atol=1e-5)


@on_both_paths
@searched(shape=shapes, seed=seeds, axis=axes)
def test_deformable_convolution(path, shape, seed, axis):
    """Forward and both gradients. The slope is undefined where an offset is an integer: none is drawn near one."""
    x, offset = random(shape, seed)
    offset = offset.floor() + (offset - offset.floor()).clamp(0.01, 0.99)
    inputs = x.requires_grad_(), offset.requires_grad_()
    with path.active():
        ours = gradients(lambda x, o: axial_gather(x, o, axis), inputs)
    theirs = gradients(lambda x, o: deformable_gather(x, o, axis), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


@on_both_paths
@searched(shape=shapes, seed=seeds, axis=axes, extreme=st.sampled_from([math.inf, -math.inf, 1e30, -1e4, 3e9]))
def test_far_offsets_read_zero(path, shape, seed, axis, extreme):
    x, offset = random(shape, seed)
    offset[..., 0] = extreme
    inputs = x.requires_grad_(), offset.requires_grad_()
    with path.active():
        y, dx, doffset = gradients(lambda x, o: axial_gather(x, o, axis), inputs)
    assert (y[..., : shape.S] == 0).all() and (dx[..., : shape.S] == 0).all() and (doffset[..., 0] == 0).all()
    assert y.isfinite().all() and dx.isfinite().all() and doffset.isfinite().all()


@on_both_paths
@searched(shape=shapes, seed=seeds, axis=axes, deterministic=st.booleans())
def test_nan_offsets_give_nan_and_harm_nobody_else(path, shape, seed, axis, deterministic):
    x, offset = random(shape, seed)
    clean = axial_gather(x, offset, axis)
    offset[0, 0, 0, 0] = math.nan
    torch.use_deterministic_algorithms(deterministic)
    with path.active():
        y, dx, doffset = gradients(lambda x, o: axial_gather(x, o, axis), (x.requires_grad_(), offset.requires_grad_()))
    torch.use_deterministic_algorithms(False)
    assert y[0, 0, 0, : shape.S].isnan().all()
    y = y.detach().clone()
    y[0, 0, 0, : shape.S] = clean[0, 0, 0, : shape.S]
    assert_close(y, clean)
    assert dx.isfinite().all() and doffset.isfinite().all()


@on_both_paths
@searched(shape=shapes, seed=seeds, axis=axes, deterministic=st.booleans())
def test_nothing_is_read_outside(path, shape, seed, axis, deterministic):
    """Tokens, offsets and gradients lie between guard bands of NaN; one value read from there would show."""
    x, offset = random(shape, seed)

    def guarded(t: torch.Tensor) -> torch.Tensor:
        band = torch.full((4 * t.numel() + 64,), math.nan)
        return torch.cat([band, t.flatten(), band])[band.numel() : band.numel() + t.numel()].view(t.shape)

    inputs = guarded(x).requires_grad_(), guarded(offset).requires_grad_()
    torch.use_deterministic_algorithms(deterministic)
    with path.active():
        y = axial_gather(*inputs, axis)
        results = y, *torch.autograd.grad(y, inputs, guarded(x))
    torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in results)


@on_both_paths
@searched(shape=shapes, seed=seeds, axis=axes, deterministic=st.booleans(), extreme=st.sampled_from([math.inf, -math.inf, math.nan]))
def test_a_gradient_that_is_not_finite_reaches_only_what_its_token_read(path, shape, seed, axis, deterministic, extreme):
    x, offset = random(shape, seed)
    dy = random(shape, seed + 1)[0]
    dy[0, -1, 0, 0] = 0
    torch.use_deterministic_algorithms(deterministic)
    with path.active():
        inputs = x.requires_grad_(), offset.requires_grad_()
        y = axial_gather(*inputs, axis)
        clean = torch.autograd.grad(y, inputs, dy, retain_graph=True)
        dy[0, -1, 0, 0] = extreme
        dx, doffset = torch.autograd.grad(y, inputs, dy)
    torch.use_deterministic_algorithms(False)
    target = offset[0, -1, 0, 0].item() + (0 if axis == "w" else shape.H - 1)
    read = {position for position in (math.floor(target), math.floor(target) + 1) if 0 <= position < along(x, axis).shape[2]}
    others = torch.ones_like(dx, dtype=torch.bool)
    for position in read:
        others[(0, -1, position, 0) if axis == "w" else (0, position, 0, 0)] = False
    assert_close(dx[others], clean[0][others])
    assert not dx[~others].isfinite().any()
    assert not doffset[0, -1, 0, 0].isfinite() or not read
    doffset[0, -1, 0, 0] = clean[1][0, -1, 0, 0]
    assert_close(doffset, clean[1])


@on_both_paths
@searched(shape=shapes, seed=seeds)
def test_infinite_tokens_stay_where_they_are(path, shape, seed):
    """An infinity at the border must not reach those that look past the border."""
    x, offset = random(shape, seed)
    x[:, :, 0], x[:, :, -1] = math.inf, -math.inf
    with path.active():
        assert (axial_gather(x, torch.full_like(offset, 2 * shape.W + 1), "w") == 0).all()


@on_both_paths
@searched(shape=shapes, seed=seeds, spread=st.floats(0, 60))
def test_fusion_is_convex(path, shape, seed, spread):
    w, h = random(shape, seed)[0], random(shape, seed + 1)[0]
    c = random(shape, seed + 2)[0]
    logits = torch.randn(shape.B, 3, shape.tokens[3], generator=torch.Generator().manual_seed(seed)) * spread
    with path.active():
        y = branch_fusion(w, h, c, logits)
        same = branch_fusion(w, w, w, logits)
    branches = torch.stack([w, h, c])
    assert (y >= branches.amin(0) - 1e-5).all() and (y <= branches.amax(0) + 1e-5).all()
    assert_close(same, w)


@on_both_paths
@searched(shape=shapes, seed=seeds, shift=st.floats(-50, 50))
def test_fusion_ignores_a_common_shift_of_the_logits(path, shape, seed, shift):
    w, h, c, logits = (t.detach() for t in make(OPERATORS["branch_fusion"], shape, torch.float32, "cpu", seed))
    with path.active():
        assert_close(branch_fusion(w, h, c, logits), branch_fusion(w, h, c, logits + shift), rtol=1e-4, atol=1e-4)


@on_both_paths
@searched(shape=shapes, seed=seeds, shift=st.floats(-30, 30), scale=st.floats(0.5, 20))
def test_offset_fc_ignores_shift_and_scale_of_a_token(path, shape, seed, shift, scale):
    """LayerNorm's invariance, but for eps, which counts where a token hardly varies: C = 1 and 2 are left out."""
    shape = Shape(shape.B, shape.H, shape.W, shape.G + 2, shape.S)
    x, *rest = (t.detach() for t in make(OPERATORS["offset_fc"], shape, torch.float32, "cpu", seed))
    with path.active():
        assert_close(offset_fc(x, *rest, eps=1e-12), offset_fc(x * scale + shift, *rest, eps=1e-12), rtol=1e-2, atol=1e-2)


@on_both_paths
def test_offset_fc_of_one_channel_is_the_norms_bias(path):
    x, bias = torch.randn(2, 3, 4, 1), torch.randn(6)
    weight = torch.randn(6, 1)
    with path.active():
        y = offset_fc(x, torch.ones(1), torch.full((1,), 0.5), weight, bias)
    assert_close(y, (0.5 * weight[:, 0] + bias).expand_as(y))


@searched(shape=shapes, seed=seeds, name=st.sampled_from(sorted(OPERATORS)), dtype=st.sampled_from(INTERPRETER.dtypes))
def test_gradients_of_the_kernels(shape, seed, name, dtype):
    """Gradients on drawn shapes are the float64 definition's, by the tolerance rule."""
    # Of too few tokens or channels the rule would compare two single roundings.
    if name == "offset_fc":
        shape = Shape(2, shape.H + 4, shape.W + 4, shape.G + 3, shape.S)
    elif OPERATORS[name].op == "token_mix":
        shape = Shape(2, shape.H + 1, shape.W + (9 if OPERATORS[name].axes == 1 else 1), shape.G + 3, shape.S + 1)
    operator = OPERATORS[name]
    inputs = make(operator, shape, dtype, "cpu", seed)
    with INTERPRETER.active():
        actual = gradients(operator.function, inputs)
    exact = exact_gradients(operator.definition, inputs)
    plain = gradients(operator.definition, inputs)
    for i, (a, p, e) in enumerate(zip(actual, plain, exact, strict=True)):
        assert_as_exact(a, p, e, "result" if i == 0 else f"gradient of input {i - 1}")
