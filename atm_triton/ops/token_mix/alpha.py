"""The two kernels between the means and the passes over the tokens: the fusion's weights, of all samples at once."""

from __future__ import annotations

from ..._triton import jit, tl


@jit
def _token_mix_pooled_kernel(
    means_ptr,  # [B, 3, C] float32
    weight_ptr,  # [3, C, C]
    bias_w_ptr,  # [C]
    bias_h_ptr,  # [C]
    pooled_ptr,  # [B, C] float32
    B,
    C: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The mean over the tokens of the three branches' sum, of BLOCK_B samples and BLOCK_C channels."""
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    s = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for start in range(0, 3 * C, BLOCK_C):  # the branches' channels in one row: only the last block of each branch's weights is cut
        k = start + tl.arange(0, BLOCK_C)
        mean = tl.load(means_ptr + b[:, None] * (3 * C) + k[None, :], mask=(b < B)[:, None] & (k < 3 * C)[None, :], other=0.0)
        at = ((k // C) * C)[:, None] * C + c[None, :] * C + (k % C)[:, None]
        weight = tl.load(weight_ptr + at, mask=(c < C)[None, :] & (k < 3 * C)[:, None], other=0.0)
        s = tl.dot(mean.to(weight.dtype), weight, s, input_precision="ieee")
    bias = tl.load(bias_w_ptr + c, mask=c < C, other=0.0).to(tl.float32) + tl.load(bias_h_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(pooled_ptr + b[:, None] * C + c[None, :], s + bias[None, :], mask=(b < B)[:, None] & (c < C)[None, :])


@jit
def _token_mix_alpha_kernel(
    pooled_ptr,  # [B, C] float32
    fc1_weight_ptr,  # [F, C]
    fc1_bias_ptr,  # [F]
    fc2_weight_ptr,  # [3 * C, F], rows in the order [C, 3]
    fc2_bias_ptr,  # [3 * C]
    alpha_ptr,  # [B, 3, C] float32
    steps_ptr,  # [B, 3, C] float32
    B,
    C: tl.constexpr,
    F: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """The bottleneck and the softmax, of BLOCK_B samples and BLOCK_C channels; every program makes all hidden values for itself.

    ``steps``: a sum weighted by alpha in one accumulator, ((acc_w * steps_w + acc_h) * steps_h + acc_c) * steps_c.
    """
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
    row = fc2_weight_ptr + (c * 3)[None, :] * F + f[:, None]
    weight = tl.load(row, mask=mask, other=0.0)
    w = tl.dot(hidden.to(weight.dtype), weight, input_precision="ieee")
    h = tl.dot(hidden.to(weight.dtype), tl.load(row + F, mask=mask, other=0.0), input_precision="ieee")
    i = tl.dot(hidden.to(weight.dtype), tl.load(row + 2 * F, mask=mask, other=0.0), input_precision="ieee")
    w += tl.load(fc2_bias_ptr + c * 3, mask=c < C, other=0.0).to(tl.float32)[None, :]
    h += tl.load(fc2_bias_ptr + c * 3 + 1, mask=c < C, other=0.0).to(tl.float32)[None, :]
    i += tl.load(fc2_bias_ptr + c * 3 + 2, mask=c < C, other=0.0).to(tl.float32)[None, :]
    top = tl.maximum(tl.maximum(w, h), i)
    w, h, i = tl.exp(w - top), tl.exp(h - top), tl.exp(i - top)
    total = w + h + i
    w, h, i = w / total, h / total, i / total
    at = b[:, None] * (3 * C) + c[None, :]
    mask = (b < B)[:, None] & (c < C)[None, :]
    tl.store(alpha_ptr + at, w, mask=mask)
    tl.store(alpha_ptr + at + C, h, mask=mask)
    tl.store(alpha_ptr + at + 2 * C, i, mask=mask)
    # A weight below any rounding is as good as one that is smaller, and keeps the quotients finite. A NaN stays one.
    w = tl.where(w < 1e-18, 1e-18, w)
    h = tl.where(h < 1e-18, 1e-18, h)
    i = tl.where(i < 1e-18, 1e-18, i)
    tl.store(steps_ptr + at, w / h, mask=mask)
    tl.store(steps_ptr + at + C, h / i, mask=mask)
    tl.store(steps_ptr + at + 2 * C, i, mask=mask)
