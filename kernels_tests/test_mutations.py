"""The suite must be able to fail: each kernel's arithmetic is broken in turn, and the case table must notice."""

from __future__ import annotations

import linecache
import sys

import pytest
import torch
import triton
from cases import INTERPRETER

from atm_triton.testing import DEPTH, OPERATORS, Shape, assert_as_exact, exact_gradients, gradients, make, plain_errors
from atm_triton.tuning import tables

SHAPE = Shape(2, 9, 12, 3, 2)
WIDE = Shape(2, 9, 12, 9, 2)  # more channels than a block of the GEMM
VOLUME = Shape(2, 4, 9, 9, 2)  # as many channels: the bottleneck of fewer is a single number
WORDS = Shape(2, 9, 12, 3, 4)  # of four channels of 16 bits

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
    ("axial_gather_w deterministic", "_line_sum", "first[None, :] + 1", "first[None, :]"),
    ("axial_gather_h deterministic", "_line_sum", "1.0 - t[None, :]", "t[None, :]"),
    ("axial_gather_w deterministic", "_line_sum", "base + (j + 1) * step", "base + j * step"),
    ("axial_gather_h deterministic", "_load_token", "+ first_part + part", "+ first_part"),
    ("axial_gather_w deterministic", "_readers", "tl.max(end)", "tl.max(end) - 1"),
    ("axial_gather_h deterministic", "_readers", "j[:, None] + 1", "j[:, None]"),
    ("axial_gather_h deterministic", "_interleaved", "parts[2 * i + 1]", "parts[2 * i]"),
    ("axial_gather_h deterministic", "_axial_gather_dx_kernel", "line // W * W * H + line % W", "line"),
    ("branch_fusion", "_softmax", "shares[k] / total", "shares[0] / total"),
    ("branch_fusion", "_sum", "total += parts[k]", "total = parts[k]"),
    ("branch_fusion", "_branch_fusion_fwd_kernel", "sample * (BRANCHES * C)", "0 * (BRANCHES * C)"),
    ("branch_fusion", "_branch_fusion_fwd_kernel", "(sample.to(tl.int64) * T + n)", "n"),
    ("branch_fusion_3d", "_branch_fusion_bwd_kernel", "h_ptr if k == 1 else t_ptr\n        branch =", "h_ptr\n        branch ="),
    ("branch_fusion", "_branch_fusion_bwd_kernel", "alphas[k][None, :] * dy", "alphas[0][None, :] * dy"),
    ("offset_fc", "_offset_fc_fwd_kernel", "tl.where(mask, x - mean[:, None], 0.0)", "x - mean[:, None]"),
    ("offset_fc", "_offset_fc_fwd_kernel", "+ EPS", "+ 0.1"),
    ("offset_fc", "_offset_fc_fwd_kernel", "+ beta[None, :]", ""),
    ("offset_fc", "_offset_fc_fwd_kernel", "acc + bias[None, :]", "acc"),
    ("offset_fc", "_offset_fc_dx_kernel", "- (sum_d / C)[:, None]", ""),
    ("offset_fc", "_offset_fc_dx_kernel", "- xhat * (sum_dx / C)[:, None]", ""),
    ("offset_fc", "_offset_fc_dw_kernel", "i * BLOCK_N", "0"),
    ("token_mix", "_channels", "channel < G * S", "channel < G"),
    ("token_mix", "_token_mix_gather_kernel", "* T + tile * TOKENS", "* T"),
    ("token_mix", "_token_mix_gather_kernel", "sums[axis] + gathered", "gathered"),
    ("token_mix", "_token_mix_gather_kernel", "axis * G + pairs", "pairs"),
    ("token_mix", "_token_mix_gather_kernel", "tl.sum(sum_c, 0)", "tl.sum(sum_c, 0) * 1.01"),
    ("token_mix", "_token_mix_gather_kernel", "BLOCK_N // W, BLOCK_N % W", "BLOCK_N // W, 0"),
    ("token_mix", "_token_mix_gather_kernel", "a + t * (b - a)", "a"),
    ("token_mix unfolded", "_token_mix_gather_kernel", "axis * plane", "0 * plane"),
    ("token_mix", "_token_mix_gather_kernel", "gathered_ptr += BLOCK_N * C", "gathered_ptr += 0 * C"),
    ("token_mix shared", "_token_mix_gather_lines_kernel", "else base + AXIS * tl.cast(B, tl.int64) * (H * W) * C", "else base"),
    ("token_mix shared", "_token_mix_gather_lines_kernel", "(W, H, 1, W) if AXIS == 0 else (H, W, W, 1)", "(W, H, 1, W)"),
    ("token_mix shared", "_token_mix_gather_lines_kernel", "u + t * (v - u)", "u"),
    ("token_mix shared", "_token_mix_gather_lines_kernel", "tl.program_id(1) * (BLOCK_E * CHANNELS // S)", "0"),
    ("token_mix shared", "_token_mix_gather_lines_kernel", "PLANE * C", "0 * C"),
    ("token_mix shared", "_token_mix_gather_lines_kernel", "begin % pieces * PIECE", "0"),
    ("token_mix shared", "_token_mix_gather_lines_kernel", "high + 1, PIECE", "high, PIECE"),
    ("token_mix shared", "_token_mix_gather_lines_kernel", "tl.where(other == start, 0,", "tl.where(other == start, PIECE,"),
    ("token_mix shared", "_token_mix_gather_lines_kernel", "first_line + BLOCK_L, 0", "first_line + BLOCK_L, start"),
    ("token_mix words", "_token_mix_gather_lines_kernel", "a | other_a", "a"),
    ("token_mix shared", "_pick", "BLOCK_Q - 1).to(tl.int32) * N\n    after", "BLOCK_Q - 2).to(tl.int32) * N\n    after"),
    ("token_mix shared", "_pick", "(first + 1)", "first"),
    ("token_mix words", "_words", "second.to(tl.uint64) << 32", "first.to(tl.uint64) << 32"),
    ("token_mix words", "_words", "odds.to(tl.uint32) << 16", "evens.to(tl.uint32) << 16"),
    ("token_mix words", "_channel", "i < 2", "i < 3"),
    ("token_mix words", "_channel", "i % 2 == 0", "i % 2 == 1"),
    ("token_mix shared", "_add_up", "sums[i] + ", ""),
    (
        "token_mix shared",
        "_fold_rows",
        "tl.sum(tl.reshape(values, (PARTS, ROWS, N)), 0)",
        "tl.max(tl.reshape(values, (PARTS, ROWS, N)), 0)",
    ),
    ("token_mix_3d", "_token_mix_gather_kernel", "row // H, row % H", "row // H, row"),
    ("token_mix_3d", "_token_mix_gather_kernel", "rows // H, rows % H", "rows // H, 0"),
    ("token_mix_3d", "_token_mix_gather_kernel", "(frame, D, H * W * C)", "(frame, D, W * C)"),
    ("token_mix_3d", "_token_mix_gather_kernel", "_walk(frame, row - rows,", "_walk(frame, row,"),
    ("token_mix_3d unfolded", "_token_mix_doffset_kernel", "row // H, row % H", "row // H, row"),
    ("token_mix_3d unfolded", "_token_mix_doffset_kernel", "(frame, D, H * W * C)", "(frame, H, H * W * C)"),
    ("token_mix_3d unfolded", "_token_mix_dx_kernel", "image // D", "image"),
    ("token_mix_3d unfolded", "_token_mix_fuse_kernel", "h_ptr if k == 1 else t_ptr", "h_ptr"),
    ("token_mix_3d unfolded", "_token_mix_fuse_backward_kernel", "dh_ptr if k == 1 else dt_ptr", "dh_ptr"),
    ("token_mix_3d shared", "_token_mix_gather_lines_kernel", "(PLANES - 1) * C", "PLANE * C"),
    ("token_mix_3d", "_token_mix_pooled_kernel", "bias_t_ptr + o", "bias_h_ptr + o"),
    ("token_mix", "_walk", "row + rows + wraps.to(tl.int32)", "row + rows"),
    ("token_mix", "_token_mix_pooled_kernel", "((k // C) * O)[:, None] * C", "0"),
    ("token_mix", "_token_mix_pooled_kernel", "s + bias[None, :]", "s"),
    ("token_mix", "_token_mix_alpha_kernel", "(c * BRANCHES)", "c"),
    ("token_mix", "_token_mix_alpha_kernel", "0.7071067811865476", "0.7"),
    ("token_mix", "_token_mix_alpha_kernel", "fc2_bias_ptr + c * BRANCHES + k", "fc2_bias_ptr + c * BRANCHES"),
    ("token_mix", "_token_mix_alpha_kernel", "row + k * F", "row"),
    ("token_mix", "_token_mix_fold_kernel", "(branch * B + sample)", "branch * B"),
    ("token_mix", "_token_mix_fold_kernel", "bias_ptr + sample * O + o", "bias_ptr + o"),
    ("token_mix", "_token_mix_fold_kernel", "tl.cast(branch * B, tl.int64)", "tl.cast(0 * B, tl.int64)"),
    ("token_mix wide", "_token_mix_fold_kernel", "tl.trans(matrix), total", "tl.trans(matrix), 0 * total"),
    ("token_mix wide", "_token_mix_fold_kernel", "% O_TILES * BLOCK_O", "% O_TILES * 0"),
    ("token_mix unfolded", "_token_mix_fuse_kernel", "alphas[k] * tl.load", "alphas[0] * tl.load"),
    ("token_mix unfolded", "_token_mix_fuse_kernel", "+ shift", ""),
    ("token_mix unfolded", "_alphas_and_shift", "bias_h_ptr if k == 1", "bias_w_ptr if k == 1"),
    ("token_mix unfolded", "_alphas_and_shift", "alpha_ptr + k * C", "alpha_ptr"),
    ("token_mix unfolded", "_token_mix_fuse_backward_kernel", "tl.sum(dy * branches[k], 0)", "tl.sum(dy * branches[0], 0)"),
    ("token_mix unfolded", "_token_mix_fuse_backward_kernel", "alphas[k] * dy", "alphas[0] * dy"),
    ("token_mix unfolded", "_token_mix_fuse_backward_kernel", "tl.sum(dy, 0)", "0 * tl.sum(dy, 0)"),
    ("token_mix unfolded", "_token_mix_fuse_backward_kernel", "alphas[k] * branches[k]", "alphas[0] * branches[k]"),
    ("token_mix", "_token_mix_doffset_kernel", "d * (b - a)", "d * b"),
    ("token_mix unfolded", "_token_mix_doffset_kernel", "column, W, C", "row, W, C"),  # folded, it would scatter astray
    ("token_mix unfolded", "_token_mix_doffset_kernel", "row, H, W * C", "row, H, C"),
    ("token_mix unfolded", "_token_mix_doffset_kernel", "d_w_ptr if axis == 0 else d_h_ptr", "d_h_ptr if axis == 0 else d_w_ptr"),
    ("token_mix", "_token_mix_doffset_kernel", "(sample * (AXES + 1) + axis) * C", "(sample * (AXES + 1)) * C"),
    ("token_mix", "_scatter_taps", "d * (1.0 - t)", "d"),
    ("token_mix", "_scatter_taps", "d * t", "d * (1.0 - t)"),
    ("token_mix unfolded", "_token_mix_dx_kernel", "AXIS * C + g", "g"),
    ("token_mix unfolded", "_token_mix_dx_kernel", "dmean_ptr + AXES * C", "dmean_ptr + C"),
    ("token_mix unfolded", "_token_mix_dx_kernel", "line // H", "line // W"),
    ("token_mix deterministic", "_token_mix_dx_kernel", "begin_ptr + own", "d_ptr + own"),
    ("token_mix unfolded", "_line_sum", "dys[part].to(tl.float32) + shifts[part]", "dys[part].to(tl.float32)"),
    ("offset_fc", "_offset_fc_dw_kernel", "dbias += tl.sum(doffset.to(tl.float32), 0)", "dbias = tl.sum(doffset.to(tl.float32), 0)"),
]


# The first of every function at once, the others with the exhaustive tests.
FIRST = {function: mutation for mutation in reversed(MUTATIONS) for function in [mutation[1]]}
BY_LENGTH = [pytest.param(*of, marks=() if of is FIRST[of[1]] else pytest.mark.exhaustive) for of in MUTATIONS]


@pytest.fixture(autouse=True)
def strategy(request, monkeypatch):
    """The mixer folded, its gradient scattered; or not folded, and summed up line by line. Means of several blocks and programs.

    Or gathered out of shared memory, lines in pieces of 7 tokens, in words of one channel or of four.
    """
    name = request.node.callspec.params["name"]
    image = "9x12/C18/G9/float32" if "wide" in name else "9x12/C12/G3/bfloat16" if "words" in name else "9x12/C6/G3/float32"
    image = f"{DEPTH}x4x9/C18/G9/float32" if "3d" in name else image
    folded = int("unfolded" not in name)
    words = 4 if "words" in name else 1
    lines = dict(CHANNELS=words, TOGETHER=3, BLOCK_L=2, BLOCK_Q=8, BLOCK_E=2, ROWS=4, num_warps=4)
    gather = dict(BLOCK_N=16, BLOCK_G=8, BLOCK_S=2, TOKENS=32, num_warps=4)
    fold = dict(BLOCK_N=16, BLOCK_O=16, BLOCK_K=16, num_warps=4)
    common = dict(FOLD=folded, SHARED=int("shared" in name or "words" in name))
    chosen = {f"token_mix/{image}": common, f"token_mix_backward/{image}": common | dict(LINES=1 - folded)}
    chosen |= {f"token_mix_gather/{image}": gather, f"token_mix_gather_lines/{image}": lines, f"token_mix_fold/{image}": fold}
    look_up = tables.config  # which takes candidates alone
    monkeypatch.setattr(tables, "config", lambda kernel, x, *of: chosen.get(tables.key(kernel, x, of[0])) or look_up(kernel, x, *of))


def guarded(t: torch.Tensor) -> torch.Tensor:
    """Put a tensor between bands of NaN, so that a broken mask reads those and not what the process happens to hold there."""
    band = torch.full((4 * t.numel() + 64,), float("nan"), dtype=t.dtype)
    return torch.cat([band, t.detach().flatten(), band])[band.numel() : band.numel() + t.numel()].view(t.shape)


def check(name: str) -> None:
    """The comparison that test_cases.py makes. Forward first: a kernel broken there never gets to write gradients astray."""
    name, _, way = name.partition(" ")
    deterministic = way == "deterministic"
    operator, shape = OPERATORS[name], VOLUME if "3d" in name else dict(wide=WIDE, words=WORDS).get(way, SHAPE)
    dtype = torch.bfloat16 if way == "words" else torch.float32
    inputs = tuple(guarded(t).requires_grad_() for t in make(operator, shape, dtype, "cpu"))
    with INTERPRETER.active():
        forward = operator.function(*inputs)
    plain = plain_errors(name, shape, dtype)
    assert_as_exact(forward, plain[0], operator.definition(*(t.double() for t in inputs)))
    torch.use_deterministic_algorithms(deterministic)
    with INTERPRETER.active():
        actual = gradients(operator.function, inputs)
    torch.use_deterministic_algorithms(False)
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
