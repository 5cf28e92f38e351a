"""The suite must be able to fail: each kernel's arithmetic is broken in turn, and the case table must notice."""

from __future__ import annotations

import linecache
from importlib import import_module

import pytest
import torch
import triton
from cases import INTERPRETER, OPERATORS, Shape, assert_as_exact, gradients, make

SHAPE = Shape(2, 9, 12, 3, 2)

# operator, kernel or helper, what it says, what it says when broken
MUTATIONS = [
    ("axial_gather_w", "_taps", "first = position + tl.where", "first = 1 + position + tl.where"),
    ("axial_gather_h", "_taps", "offset - floor", "floor - offset"),
    ("axial_gather_w", "_taps", "(first >= 0) & (first < length)", "(first > 0) & (first < length)"),
    ("axial_gather_w", "_taps", "(first < length - 1)", "(first < length)"),
    ("axial_gather_w", "_taps", "edge = length + 1.0", "edge = 1.0"),
    ("axial_gather_w", "_place", "if ALONG_W", "if not ALONG_W"),
    ("axial_gather_h", "_place", "% H, H, W", "% H, H, 1"),
    ("axial_gather_h", "_place", "+ column // W", "+ 0 * column"),
    ("axial_gather_w", "_axial_gather_fwd_kernel", "a + t[:, :, None] * (b - a)", "a"),
    ("axial_gather_w", "_axial_gather_fwd_kernel", "a + t[:, :, None] * (b - a)", "t[:, :, None] * b"),
    ("axial_gather_h", "_axial_gather_fwd_kernel", "source + step * (G * S)", "source + (G * S)"),
    ("axial_gather_w", "_axial_gather_fwd_kernel", "(g * S)[None, :, None] + s", "(g * S)[None, :, None] + 0 * s"),
    ("axial_gather_w", "_axial_gather_bwd_kernel", "dy * (b - a)", "dy * b"),
    ("axial_gather_w", "_axial_gather_bwd_kernel", "(1.0 - t)", "t"),
    ("axial_gather_h", "_axial_gather_bwd_kernel", "dy * t[:, :, None]", "dy * (1.0 - t)[:, :, None]"),
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
    ("offset_fc", "_offset_fc_dw_kernel", "dbias += tl.sum(doffset.to(tl.float32), 0)", "dbias = tl.sum(doffset.to(tl.float32), 0)"),
]


def guarded(t: torch.Tensor) -> torch.Tensor:
    """Between bands of NaN, so that a broken mask reads those and not what the process happens to hold there."""
    band = torch.full((4 * t.numel() + 64,), float("nan"))
    return torch.cat([band, t.detach().flatten(), band])[band.numel() : band.numel() + t.numel()].view(t.shape)


def check(name: str) -> None:
    """The comparison that test_cases.py makes, in float32. Forward first: a kernel broken there never gets to write gradients astray."""
    name, _, deterministic = name.partition(" ")
    operator = OPERATORS[name]
    inputs = tuple(guarded(t).requires_grad_() for t in make(operator, SHAPE, torch.float32, "cpu"))
    with INTERPRETER.active():
        forward = operator.function(*inputs)
    assert_as_exact(forward, operator.definition(*inputs), operator.definition(*(t.double() for t in inputs)))
    torch.use_deterministic_algorithms(bool(deterministic))
    with INTERPRETER.active():
        actual = gradients(operator.function, inputs)
    torch.use_deterministic_algorithms(False)
    plain = gradients(operator.definition, inputs)
    exact = gradients(operator.definition, tuple(t.detach().double().requires_grad_() for t in inputs))
    for a, p, e in zip(actual, plain, exact, strict=True):
        assert_as_exact(a, p, e)


@pytest.mark.parametrize("name", sorted({mutation[0] for mutation in MUTATIONS}))
def test_the_unbroken_kernels_pass(name):
    check(name)


@pytest.mark.parametrize("name,function,right,broken", MUTATIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_broken_kernel_fails(name, function, right, broken, monkeypatch, tmp_path):
    module = import_module("atm_triton." + name.partition(" ")[0].removesuffix("_w").removesuffix("_h"))
    original = getattr(module, function)
    source = original.src if hasattr(original, "src") else original._src
    assert source.count(right) >= 1, f"{function} no longer says {right!r}: the mutation is out of date"
    # Triton reads a kernel's source from its file.
    file = tmp_path / "mutated.py"
    file.write_text("from __future__ import annotations\n\n\n" + source.replace(right, broken, 1))
    linecache.checkcache()
    namespace = dict(vars(module))
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    mutated = triton.jit(namespace[function])
    monkeypatch.setattr(module, function, mutated)
    with pytest.raises(AssertionError, match="relative error|NaN"):
        check(name)
