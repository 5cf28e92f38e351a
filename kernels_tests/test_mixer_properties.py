"""Properties of token_mix whatever its input, searched by hypothesis: folded and not, plain and on the kernels in the interpreter."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator
from functools import partial
from unittest import mock

import pytest
import torch
from cases import GPU, INTERPRETER, PLAIN, Path, on_gpu
from hypothesis import strategies as st
from searches import search
from torch import Tensor
from torch.testing import assert_close

from atm_triton import token_mix
from atm_triton.algebra import Weights
from atm_triton.testing import OPERATORS, Shape, assert_as_exact, exact_gradients, gradients, make, mixer_inputs, plain_errors
from atm_triton.tuning import tables

shapes = st.builds(Shape, st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(1, 3), st.integers(1, 4))
seeds = st.integers(0, 2**31 - 1)
each_strategy = pytest.mark.parametrize(
    "path,folded", [(path, folded) for path in (PLAIN, INTERPRETER) for folded in (False, True)], ids=str
)
searched = partial(search, 3, 8)  # each example runs four kernels or more


@contextlib.contextmanager
def strategy(path: Path, folded: bool, deterministic: bool = False) -> Iterator[None]:
    """Force a strategy: folded, gathered from global memory and scattered; else out of shared memory, and summed up by lines."""
    forced = {"token_mix": dict(FOLD=int(folded), SHARED=int(not folded))}
    forced["token_mix_backward"] = forced["token_mix"] | dict(LINES=int(not folded))
    look_up = tables.config
    torch.use_deterministic_algorithms(deterministic)
    with path.active(), mock.patch.object(tables, "config", lambda kernel, *of: forced.get(kernel) or look_up(kernel, *of)):
        yield
    torch.use_deterministic_algorithms(False)


def draw(shape: Shape, seed: int) -> tuple[Tensor, ...]:
    return make(OPERATORS["token_mix"], shape, torch.float32, "cpu", seed)


@each_strategy
@searched(shape=shapes, outputs=st.integers(1, 40), seed=seeds)
def test_any_number_of_outputs(path, folded, shape, outputs, seed):
    operator = dataclasses.replace(OPERATORS["token_mix"], inputs=lambda shape: mixer_inputs(shape, outputs))
    inputs = make(operator, shape, torch.float32, "cpu", seed)
    with strategy(path, folded):
        actual = gradients(token_mix, inputs)
    for a, e in zip(actual, exact_gradients(operator.definition, inputs), strict=True):
        assert_close(a, e.float(), rtol=1e-3, atol=1e-4)


@each_strategy
@searched(shape=shapes, seed=seeds)
def test_samples_do_not_meet(path, folded, shape, seed):
    x, offset, *weights = draw(shape, seed)
    with strategy(path, folded):
        together = gradients(lambda x, o: token_mix(x, o, *weights), (x, offset))[0]
        apart = torch.cat([token_mix(x[b : b + 1], offset[b : b + 1], *weights) for b in range(shape.B)])
    assert_close(together, apart, rtol=1e-4, atol=1e-5)


@each_strategy
@searched(shape=shapes, seed=seeds)
def test_rows_and_columns_may_change_places(path, folded, shape, seed):
    """A transposed image, with the two halves of the offsets and the two branches exchanged: the same result and gradients, transposed."""
    inputs = draw(shape, seed)

    def transposed(x: Tensor, offset: Tensor, *rest: Tensor) -> Tensor:
        w = Weights(*rest)
        along_w, along_h = offset.transpose(1, 2).chunk(2, 3)
        rows = torch.arange(3 * shape.tokens[3]).view(-1, 3)[:, [1, 0, 2]].flatten()  # of fc2, [C, 3]: w and h exchanged
        exchanged = w._replace(
            weight_w=w.weight_h,
            bias_w=w.bias_h,
            weight_h=w.weight_w,
            bias_h=w.bias_w,
            fc2_weight=w.fc2_weight[rows],
            fc2_bias=w.fc2_bias[rows],
        )
        return token_mix(x.transpose(1, 2), torch.cat([along_h, along_w], 3), *exchanged).transpose(1, 2)

    with strategy(path, folded):
        expected = gradients(token_mix, inputs)
        actual = gradients(transposed, inputs)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, rtol=1e-3, atol=1e-4)


@each_strategy
@searched(shape=shapes, seed=seeds, extreme=st.sampled_from([math.inf, -math.inf, 1e30, -1e4, 3e9]))
def test_far_offsets_read_zero(path, folded, shape, seed, extreme):
    """The gathered branches vanish: y does not depend on their weights, nor on the offsets."""
    x, offset, *weights = draw(shape, seed)
    far = torch.full_like(offset, extreme).requires_grad_()
    with strategy(path, folded):
        y, dx, doffset, dweight_w, _, dweight_h, *_ = results = gradients(token_mix, (x, far, *weights))
    assert all(t.isfinite().all() for t in results)
    assert (doffset == 0).all() and (dweight_w == 0).all() and (dweight_h == 0).all()


@each_strategy
@searched(shape=shapes, seed=seeds)
def test_a_nan_offset_stays_in_its_sample(path, folded, shape, seed):
    x, offset, *weights = (t.detach() for t in draw(shape, seed))
    with strategy(path, folded):
        clean = token_mix(x, offset, *weights)
        offset[0, 0, 0, 0] = math.nan
        y = token_mix(x, offset, *weights)
    assert y[0].isnan().all()  # through the mean it counts in every token
    assert torch.equal(y[1:], clean[1:])


@each_strategy
@searched(shape=shapes, seed=seeds, extreme=st.sampled_from([math.inf, -math.inf, math.nan]))
def test_a_gradient_that_is_not_finite_stays_in_its_sample(path, folded, shape, seed, extreme):
    x, offset, *weights = draw(shape, seed)
    dy = torch.randn(shape.tokens, generator=torch.Generator().manual_seed(seed))
    with strategy(path, folded):
        y = token_mix(x, offset, *weights)
        clean = torch.autograd.grad(y, (x, offset), dy, retain_graph=True)
        dy[0, -1, 0, 0] = extreme
        found = torch.autograd.grad(y, (x, offset), dy)
    for one, other in zip(found, clean, strict=True):
        assert torch.equal(one[1:], other[1:])


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("dtype", PLAIN.dtypes, ids=str)
@pytest.mark.parametrize("shape", [Shape(2, 0, 4, 3, 2), Shape(2, 3, 0, 3, 2), Shape(2, 0, 0, 3, 2), Shape(0, 0, 0, 3, 2)], ids=str)
@pytest.mark.parametrize("path", [PLAIN, INTERPRETER], ids=str)
def test_images_without_tokens(path, shape, dtype, folded):
    """Results are empty, and gradients zero: not NaN, which the mean of nothing is."""
    if dtype not in path.dtypes:
        pytest.skip("no kernels in it")
    inputs = make(OPERATORS["token_mix"], shape, dtype, "cpu")
    with strategy(path, folded):
        y, *grads = gradients(token_mix, inputs)
    assert y.shape == shape.tokens
    for t, grad in zip(inputs, grads, strict=True):
        assert torch.equal(grad, torch.zeros_like(t))


@pytest.mark.parametrize("path", [PLAIN, INTERPRETER], ids=str)
def test_long_sums_stay_in_the_range_of_float16(path):
    """Sums of x and dy that agree in sign at every one of 5184 tokens: where the definition's gradients are finite, ours are."""
    C, side = 8, 72
    generator = torch.Generator().manual_seed(0)
    inputs = [t.detach() * 0.02 for t in make(OPERATORS["token_mix"], Shape(1, side, side, 4, 2), torch.float16, "cpu")]
    sign = torch.randn(1, side, side, 1, generator=generator).sign()
    inputs[0] = (sign * torch.randn(C, generator=generator)).half()
    dy = (16 * sign * torch.randn(C, generator=generator)).half()
    inputs = [t.requires_grad_() for t in inputs]
    for function in (OPERATORS["token_mix"].definition, token_mix):
        with path.active():
            grads = torch.autograd.grad(function(*inputs), inputs, dy)
        assert all(grad.isfinite().all() for grad in grads), function


@each_strategy
@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
@searched(shape=shapes, seed=seeds)
def test_nothing_is_read_outside(path, folded, deterministic, shape, seed):
    """Tensors lie between guard bands of NaN; one value read from there would show."""

    def guarded(t: Tensor) -> Tensor:
        band = torch.full((4 * t.numel() + 64,), math.nan)
        return torch.cat([band, t.detach().flatten(), band])[band.numel() : band.numel() + t.numel()].view(t.shape)

    inputs = tuple(guarded(t).requires_grad_() for t in draw(shape, seed))
    with strategy(path, folded, deterministic):
        y = token_mix(*inputs)
        results = y, *torch.autograd.grad(y, inputs, guarded(torch.ones_like(y)))
    assert all(t.isfinite().all() for t in results)


def test_the_tolerance_rule_compares_nans():
    exact = torch.tensor([1.0, math.nan], dtype=torch.float64)
    assert_as_exact(torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.nan]), exact)
    for wrong, message in (
        ([1.0, 2.0], "no NaN where"),
        ([math.nan, math.nan], "NaN where the reference has none"),
        ([1.1, math.nan], "error"),
    ):
        with pytest.raises(AssertionError, match=message):
            assert_as_exact(torch.tensor(wrong), torch.tensor([1.0, math.nan]), exact)


# The channels of every stage, of ATMNet-L's last one, and more outputs than one program's.
FIRST, *OTHERS = [Shape(2, 3, 7, *of) for of in ((32, 2), (32, 4), (80, 4), (64, 8), (96, 8))]


STRATEGIES = [(INTERPRETER, torch.bfloat16, way, way) for way in (False, True)]  # each takes the interpreter many seconds
STRATEGIES += [pytest.param(GPU, *of, marks=on_gpu.marks) for of in itertools.product(GPU.dtypes, (False, True), (False, True))]


@pytest.mark.parametrize("path,dtype,folded,deterministic", STRATEGIES, ids=str)
@pytest.mark.parametrize("shape", [FIRST, *(pytest.param(shape, marks=pytest.mark.exhaustive) for shape in OTHERS)], ids=str)
def test_the_stages_cut_small(path, shape, dtype, folded, deterministic):
    operator = OPERATORS["token_mix"]
    inputs = make(operator, shape, dtype, path.device)
    with strategy(path, folded, deterministic):
        actual = gradients(operator.function, inputs)
    exact = exact_gradients(operator.definition, tuple(t.detach().cpu() for t in inputs))
    for a, plain, e in zip(actual, plain_errors("token_mix", shape, dtype), exact, strict=True):
        assert_as_exact(a, plain, e)
