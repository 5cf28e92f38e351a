"""The suite must be able to fail: each kernel's arithmetic is broken in turn, and the case table must notice."""

from __future__ import annotations

import linecache
import sys

import pytest
import torch
import triton
from cases import INTERPRETER

from atm_triton.testing import OPERATORS, Shape, assert_as_exact, exact_gradients, gradients, make
from atm_triton.tuning import tables

SHAPE, WIDE = Shape(2, 9, 12, 3, 2), Shape(2, 9, 12, 9, 2)  # the second: outputs that need two blocks

# operator, kernel or helper, what it says, what it says when broken
MUTATIONS = [
    ("axial_gather_w", "_taps", "first = position + floor", "first = 1 + position + floor"),
    ("axial_gather_h", "_taps", "clamped - floor, offset", "floor - clamped, offset"),
    ("axial_gather_w", "_taps", "in_first = first.to(tl.uint32) <", "in_first = (first - 1).to(tl.uint32) <"),
    ("axial_gather_w", "_taps", "(first + 1).to(tl.uint32) <", "(first + 1).to(tl.uint32) <="),
    ("axial_gather_w", "_taps", "edge = length + 1.0", "edge = 1.0"),
    ("axial_gather_w", "_place", "if ALONG_W", "if not ALONG_W"),
    ("axial_gather_h", "_place", "% H, H, W", "% H, H, 1"),
    ("axial_gather_h", "_place", "+ column // W", "+ 0 * column"),
    ("axial_gather_w", "_axial_gather_fwd_kernel", "a + t * (b - a)", "a"),
    ("axial_gather_w", "_axial_gather_fwd_kernel", "a + t * (b - a)", "t * b"),
    ("axial_gather_h", "_load_taps", "at + step", "at + 2 * step"),
    ("axial_gather_h", "_axial_gather_fwd_kernel", "x_ptr, at, step * (G * S)", "x_ptr, at, G * S"),
    ("axial_gather_w", "_axial_gather_fwd_kernel", "(g * S)[None, :, None] + s[", "(g * S)[None, :, None] + 0 * s["),
    ("token_mix", "_tap_addresses", "+ s[None, None, :]", "+ 0 * s[None, None, :]"),
    ("token_mix", "_tap_addresses", "(first - position[:, None])", "first"),
    ("axial_gather_w", "_axial_gather_bwd_kernel", "dy * (b - a)", "dy * b"),
    ("axial_gather_w", "_scatter_taps", "(1.0 - t)", "t"),
    ("axial_gather_h", "_scatter_taps", "d * t", "d * (1.0 - t)"),
    ("axial_gather_h", "_axial_gather_bwd_kernel", "in_first, in_second, dy", "in_first, in_first & in_second, dy"),
    ("axial_gather_w deterministic", "_axial_gather_dx_kernel", "first[None, :] + 1", "first[None, :]"),
    ("axial_gather_h deterministic", "_axial_gather_dx_kernel", "line // W * W * H + line % W", "line"),
    ("axial_gather_w deterministic", "_axial_gather_dx_kernel", "base + j * step", "base + step"),
    ("branch_fusion", "_alpha", "return w / total, h / total", "return h / total, w / total"),
    ("branch_fusion", "_alpha", "total = w + h + c", "total = w + h"),
    ("branch_fusion", "_branch_fusion_fwd_kernel", "sample * (3 * C)", "0 * (3 * C)"),
    ("branch_fusion", "_branch_fusion_fwd_kernel", "(sample.to(tl.int64) * T + n)", "n"),
    ("branch_fusion", "_branch_fusion_bwd_kernel", "tl.sum(dy * h, 0)", "tl.sum(dy * w, 0)"),
    ("branch_fusion", "_branch_fusion_bwd_kernel", "alpha_c[None, :] * dy", "alpha_h[None, :] * dy"),
    ("offset_fc", "_offset_fc_fwd_kernel", "tl.where(mask, x - mean[:, None], 0.0)", "x - mean[:, None]"),
    ("offset_fc", "_offset_fc_fwd_kernel", "+ EPS", "+ 0.1"),
    ("offset_fc", "_offset_fc_fwd_kernel", "+ beta[None, :]", ""),
    ("offset_fc", "_offset_fc_fwd_kernel", "acc + bias[None, :]", "acc"),
    ("offset_fc", "_offset_fc_dx_kernel", "- (sum_d / C)[:, None]", ""),
    ("offset_fc", "_offset_fc_dx_kernel", "- xhat * (sum_dx / C)[:, None]", ""),
    ("offset_fc", "_offset_fc_dw_kernel", "i * BLOCK_N", "0"),
    ("token_mix", "_token_mix_fwd_kernel", "column, W, C", "row, W, C"),
    ("token_mix", "_token_mix_fwd_kernel", "row, H, W * C", "row, H, C"),
    ("token_mix", "_channels", "channel < G * S", "channel < G"),
    ("token_mix", "_token_mix_mean_kernel", "* T + tile * TOKENS", "* T"),
    ("token_mix", "_token_mix_mean_kernel", "sum_h += gathered", "sum_h = gathered"),
    ("token_mix", "_token_mix_mean_kernel", "axis * G + pairs", "pairs"),
    ("token_mix", "_token_mix_mean_kernel", "tl.sum(sum_c, 0)", "tl.sum(sum_c, 0) * 1.01"),
    ("token_mix", "_token_mix_mean_kernel", "BLOCK_N // W, BLOCK_N % W", "BLOCK_N // W, 0"),
    ("token_mix", "_walk", "row + rows + wraps.to(tl.int32)", "row + rows"),
    ("token_mix", "_token_mix_pooled_kernel", "((k // C) * C)[:, None] * C", "0"),
    ("token_mix", "_token_mix_pooled_kernel", "s + bias[None, :]", "s"),
    ("token_mix", "_token_mix_alpha_kernel", "(c * 3)", "c"),
    ("token_mix", "_token_mix_alpha_kernel", "0.7071067811865476", "0.7"),
    ("token_mix", "_token_mix_alpha_kernel", "fc2_bias_ptr + c * 3 + 2", "fc2_bias_ptr + c * 3 + 1"),
    ("token_mix unfolded", "_token_mix_alpha_kernel", "w / h, mask", "h / w, mask"),
    ("token_mix unfolded", "_token_mix_alpha_kernel", "steps_ptr + at + 2 * C, i", "steps_ptr + at + 2 * C, h"),
    ("token_mix", "_token_mix_fwd_kernel", "(branch * B + sample)", "branch * B"),
    ("token_mix", "_token_mix_fwd_kernel", "branch * G + g", "g"),
    ("token_mix", "_token_mix_fwd_kernel", "a + t * (b - a)", "a"),
    ("token_mix", "_token_mix_fwd_kernel", "bias_ptr + sample * C + o", "bias_ptr + o"),
    ("token_mix unfolded", "_token_mix_fwd_kernel", "(sample * 3 + branch) * C", "(sample * 3) * C"),
    ("token_mix unfolded", "_token_mix_fwd_kernel", "y += tl.load(proj_bias_ptr", "y = y + 0 * tl.load(proj_bias_ptr"),
    ("token_mix unfolded", "_token_mix_fwd_kernel", "proj_ptr + p[:, None] * C + o[None, :]", "proj_ptr + p[:, None] + o[None, :] * C"),
    ("token_mix unfolded", "_token_mix_fwd_kernel", "tl.sum(total * d, 1)", "tl.sum(total, 1)"),
    ("token_mix unfolded", "_token_mix_fwd_kernel", "tl.sum(d, 1)", "tl.sum(d, 1) * 0"),
    ("token_mix wide", "_token_mix_fwd_kernel", "rest *= tl.load(steps + r", "rest *= tl.load(steps + o"),
    ("token_mix wide", "_token_mix_fwd_kernel", "tl.sum(rest * d, 1)", "tl.sum(rest, 1)"),
    ("token_mix wide", "_token_mix_fwd_kernel", "y = tl.dot(weight, mixed_rest, y", "y = tl.dot(weight, mixed_rest, 0 * y"),
    ("token_mix", "_token_mix_dw_kernel", "row, column = _walk", "_, column = _walk"),
    ("token_mix", "_token_mix_dw_kernel", "chunk * TOKENS, tl", "0, tl"),
    ("token_mix", "_token_mix_dw_kernel", "a + t * (b - a)", "b"),
    ("token_mix unfolded", "_token_mix_dw_kernel", "total *= (alpha / new)", "total *= (alpha / alpha)"),
    ("token_mix unfolded", "_token_mix_dw_kernel", "total * alpha[:, None]", "total"),
    ("token_mix wide", "_token_mix_dw_kernel", "alpha_rest = new_rest", "alpha_rest = 0 * new_rest"),
    ("token_mix", "_token_mix_dx_kernel", "d = tl.trans(acc) + tl.load(dmean_ptr", "d = tl.trans(acc) + 0 * tl.load(dmean_ptr"),
    ("token_mix", "_token_mix_dx_kernel", "tl.sum(d * (b - a), 2)", "tl.sum(d * b, 2)"),
    ("token_mix", "_scatter_taps", "d * (1.0 - t)", "d"),
    ("token_mix", "_scatter_taps", "d * t", "d * (1.0 - t)"),
    ("token_mix unfolded", "_token_mix_dx_kernel", "dy.to(tl.float32) * alpha[None, :]", "dy.to(tl.float32)"),
    ("token_mix deterministic", "_token_mix_dx_kernel", "branch * B, tl.int64", "0 * B, tl.int64"),
    ("offset_fc", "_offset_fc_dw_kernel", "dbias += tl.sum(doffset.to(tl.float32), 0)", "dbias = tl.sum(doffset.to(tl.float32), 0)"),
]


# The first of every function at once, the others with the exhaustive tests.
FIRST = {function: mutation for mutation in reversed(MUTATIONS) for function in [mutation[1]]}
BY_LENGTH = [pytest.param(*of, marks=() if of is FIRST[of[1]] else pytest.mark.exhaustive) for of in MUTATIONS]


@pytest.fixture(autouse=True)
def ways(request, monkeypatch):
    """The mixer folded, or not; its weight gradients in several chunks of a sample, or of several samples together."""
    name = request.node.callspec.params["name"]
    wide = "wide" in name
    image = "9x12/C18/G9/float32" if wide else "9x12/C6/G3/float32"
    folded = {"FOLD": int("unfolded" not in name and not wide)}
    tile = dict(BLOCK_N=16, BLOCK_G=8, BLOCK_S=2, BLOCK_O=16, BLOCK_R=16 * wide, num_warps=4)
    chosen = {f"token_mix/{image}": folded, f"token_mix_backward/{image}": folded}
    chosen[f"token_mix_mean/{image}"] = dict(BLOCK_N=16, BLOCK_G=8, BLOCK_S=2, TOKENS=32, num_warps=4)
    chosen |= {f"token_mix_fwd/{image}": tile, f"token_mix_dw/{image}": tile | dict(PROGRAMS=12 if folded["FOLD"] else 3)}
    monkeypatch.setattr(tables, "table", lambda device: chosen)


def guarded(t: torch.Tensor) -> torch.Tensor:
    """Between bands of NaN, so that a broken mask reads those and not what the process happens to hold there."""
    band = torch.full((4 * t.numel() + 64,), float("nan"))
    return torch.cat([band, t.detach().flatten(), band])[band.numel() : band.numel() + t.numel()].view(t.shape)


def check(name: str) -> None:
    """The comparison that test_cases.py makes, in float32. Forward first: a kernel broken there never gets to write gradients astray."""
    name, _, way = name.partition(" ")
    deterministic = way == "deterministic"
    operator, shape = OPERATORS[name], WIDE if way == "wide" else SHAPE
    inputs = tuple(guarded(t).requires_grad_() for t in make(operator, shape, torch.float32, "cpu"))
    with INTERPRETER.active():
        forward = operator.function(*inputs)
    assert_as_exact(forward, operator.definition(*inputs), operator.definition(*(t.double() for t in inputs)))
    torch.use_deterministic_algorithms(deterministic)
    with INTERPRETER.active():
        actual = gradients(operator.function, inputs)
    torch.use_deterministic_algorithms(False)
    plain = gradients(operator.definition, inputs)
    exact = exact_gradients(operator.definition, inputs)
    for a, p, e in zip(actual, plain, exact, strict=True):
        assert_as_exact(a, p, e)


@pytest.mark.parametrize("name", sorted({mutation[0] for mutation in MUTATIONS}))
def test_the_unbroken_kernels_pass(name):
    check(name)


@pytest.mark.parametrize("name,function,right,broken", BY_LENGTH, ids=lambda value: value if isinstance(value, str) else "")
def test_a_broken_kernel_fails(name, function, right, broken, monkeypatch, tmp_path):
    modules = [module for path, module in sys.modules.items() if path.startswith("atm_triton.ops.")]
    users = [module for module in modules if hasattr(module, function)]
    original = getattr(users[0], function)
    source = original.src if hasattr(original, "src") else original._src
    assert source.count(right) >= 1, f"{function} no longer says {right!r}: the mutation is out of date"
    # Triton reads a kernel's source from its file.
    file = tmp_path / "mutated.py"
    file.write_text("from __future__ import annotations\n\n\n" + source.replace(right, broken, 1))
    linecache.checkcache()
    home = sys.modules[(original.fn if hasattr(original, "fn") else original).__module__]
    namespace = dict(vars(home))
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    mutated = triton.jit(namespace[function])
    for user in users:
        monkeypatch.setattr(user, function, mutated)
    with pytest.raises(AssertionError, match="relative error|NaN"):
        check(name)
