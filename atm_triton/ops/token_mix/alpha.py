"""The two kernels between the means and the passes over the tokens: the fusion's weights, of all samples at once."""

from __future__ import annotations

from ..._triton import jit, tl
from ..branch_fusion import _softmax


@jit
def _token_mix_pooled_kernel(
    means_ptr,  # [B, BRANCHES, C] float32
    weight_ptr,  # [BRANCHES, O, C]
    bias_w_ptr,  # [O]
    bias_h_ptr,  # [O], of three branches or four
    bias_t_ptr,  # [O], of four
    pooled_ptr,  # [B, O] float32
    B,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    BRANCHES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The mean over the tokens of the branches' sum, of BLOCK_B samples and BLOCK_C outputs."""
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    o = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    s = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for start in range(0, BRANCHES * C, BLOCK_C):  # the branches' channels in one row: only the last block of each branch's weights is cut
        k = start + tl.arange(0, BLOCK_C)
        mean = tl.load(means_ptr + b[:, None] * (BRANCHES * C) + k[None, :], mask=(b < B)[:, None] & (k < BRANCHES * C)[None, :], other=0.0)
        at = ((k // C) * O)[:, None] * C + o[None, :] * C + (k % C)[:, None]
        weight = tl.load(weight_ptr + at, mask=(o < O)[None, :] & (k < BRANCHES * C)[:, None], other=0.0)
        s = tl.dot(mean.to(weight.dtype), weight, s, input_precision="ieee")
    bias = tl.load(bias_w_ptr + o, mask=o < O, other=0.0).to(tl.float32)
    if BRANCHES > 2:
        bias += tl.load(bias_h_ptr + o, mask=o < O, other=0.0).to(tl.float32)
    if BRANCHES > 3:
        bias += tl.load(bias_t_ptr + o, mask=o < O, other=0.0).to(tl.float32)
    tl.store(pooled_ptr + b[:, None] * O + o[None, :], s + bias[None, :], mask=(b < B)[:, None] & (o < O)[None, :])


@jit
def _token_mix_alpha_kernel(
    pooled_ptr,  # [B, C] float32
    fc1_weight_ptr,  # [F, C]
    fc1_bias_ptr,  # [F]
    fc2_weight_ptr,  # [BRANCHES * C, F], rows in the order [C, BRANCHES]
    fc2_bias_ptr,  # [BRANCHES * C]
    alpha_ptr,  # [B, BRANCHES, C] float32
    B,
    C: tl.constexpr,
    F: tl.constexpr,
    BRANCHES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """The bottleneck and the softmax, of BLOCK_B samples and BLOCK_C channels; every program makes all hidden values for itself."""
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    f = tl.arange(0, BLOCK_F)
    hidden = tl.zeros((BLOCK_B, BLOCK_F), tl.float32)
    for start in range(0, C, BLOCK_C):
        k = start + tl.arange(0, BLOCK_C)
        s = tl.load(pooled_ptr + b[:, None] * C + k[None, :], mask=(b < B)[:, None] & (k < C)[None, :], other=0.0)
        weight = tl.load(fc1_weight_ptr + f[None, :] * C + k[:, None], mask=(f < F)[None, :] & (k < C)[:, None], other=0.0)
        hidden = tl.dot(s.to(weight.dtype), weight, hidden, input_precision="ieee")
    hidden += tl.load(fc1_bias_ptr + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
    hidden = 0.5 * hidden * (1.0 + tl.erf(hidden * 0.7071067811865476))
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (f < F)[:, None] & (c < C)[None, :]
    row = fc2_weight_ptr + (c * BRANCHES)[None, :] * F + f[:, None]
    products = ()
    for k in tl.static_range(BRANCHES):
        weight = tl.load(row + k * F, mask=mask, other=0.0)
        products = products + (tl.dot(hidden.to(weight.dtype), weight, input_precision="ieee"),)  # type: ignore
    logits = ()
    for k in tl.static_range(BRANCHES):
        bias = tl.load(fc2_bias_ptr + c * BRANCHES + k, mask=c < C, other=0.0).to(tl.float32)
        logits = logits + (products[k] + bias[None, :],)  # type: ignore
    alphas = _softmax(logits)
    at = b[:, None] * (BRANCHES * C) + c[None, :]
    mask = (b < B)[:, None] & (c < C)[None, :]
    for k in tl.static_range(BRANCHES):
        tl.store(alpha_ptr + at + k * C, alphas[k], mask=mask)
