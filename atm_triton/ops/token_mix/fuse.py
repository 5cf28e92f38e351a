"""The weighted sum of the branches, where it is not folded into their matrices: alpha_w * w + alpha_h * h + alpha_c * c, and its gradient.

As in branch_fusion, but for alpha, which is known, and the biases of the FCs, which PyTorch's GEMMs would add in a pass of their own.
"""

from __future__ import annotations

from ..._triton import jit, tl


@jit
def _token_mix_fuse_kernel(
    w_ptr,  # [B, T, C]: of the tokens gathered along W, without the bias
    h_ptr,  # [B, T, C]
    c_ptr,  # [B, T, C]
    alpha_ptr,  # [B, 3, C] float32
    bias_w_ptr,  # [C]
    bias_h_ptr,  # [C]
    y_ptr,  # [B, T, C]
    T,
    TILES,  # programs per sample
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample = (tl.program_id(0) // TILES).to(tl.int64)
    n = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    alpha_w, alpha_h, alpha_c, shift = _alpha_and_shift(alpha_ptr + sample * (3 * C), bias_w_ptr, bias_h_ptr, channel, C)
    mask = (n < T)[:, None] & (channel < C)[None, :]
    index = (sample * T + n)[:, None] * C + channel[None, :]
    w = tl.load(w_ptr + index, mask=mask, other=0.0).to(tl.float32)
    h = tl.load(h_ptr + index, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + index, mask=mask, other=0.0).to(tl.float32)
    y = alpha_w * w + alpha_h * h + alpha_c * c + shift
    tl.store(y_ptr + index, y.to(y_ptr.dtype.element_ty), mask=mask)


@jit
def _token_mix_fuse_backward_kernel(
    dy_ptr,  # [B, T, C]
    w_ptr,  # [B, T, C]
    h_ptr,  # [B, T, C]
    c_ptr,  # [B, T, C]
    alpha_ptr,  # [B, 3, C] float32
    bias_w_ptr,  # [C]
    bias_h_ptr,  # [C]
    dw_ptr,  # [B, T, C]
    dh_ptr,  # [B, T, C]
    dc_ptr,  # [B, T, C]
    y_ptr,  # [B, T, C]: the sum again, for the projection's gradient
    partial_ptr,  # [B, TILES, 4, C] float32: over the tokens of one program, dy times each branch, and dy
    T,
    TILES,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample = (tl.program_id(0) // TILES).to(tl.int64)
    n = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    alpha_w, alpha_h, alpha_c, shift = _alpha_and_shift(alpha_ptr + sample * (3 * C), bias_w_ptr, bias_h_ptr, channel, C)
    mask = (n < T)[:, None] & (channel < C)[None, :]
    index = (sample * T + n)[:, None] * C + channel[None, :]
    dy = tl.load(dy_ptr + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(dw_ptr + index, (alpha_w * dy).to(dw_ptr.dtype.element_ty), mask=mask)
    tl.store(dh_ptr + index, (alpha_h * dy).to(dh_ptr.dtype.element_ty), mask=mask)
    tl.store(dc_ptr + index, (alpha_c * dy).to(dc_ptr.dtype.element_ty), mask=mask)
    w = tl.load(w_ptr + index, mask=mask, other=0.0).to(tl.float32)
    h = tl.load(h_ptr + index, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + index, mask=mask, other=0.0).to(tl.float32)
    y = alpha_w * w + alpha_h * h + alpha_c * c + shift
    tl.store(y_ptr + index, y.to(y_ptr.dtype.element_ty), mask=mask)
    partial = partial_ptr + tl.program_id(0).to(tl.int64) * (4 * C) + channel
    tl.store(partial, tl.sum(dy * w, 0), mask=channel < C)
    tl.store(partial + C, tl.sum(dy * h, 0), mask=channel < C)
    tl.store(partial + 2 * C, tl.sum(dy * c, 0), mask=channel < C)
    tl.store(partial + 3 * C, tl.sum(dy, 0), mask=channel < C)


@jit
def _alpha_and_shift(alpha_ptr, bias_w_ptr, bias_h_ptr, channel, C: tl.constexpr):
    """The weights of one sample's branches, each ``[1, channels]``, and what the biases add to its tokens."""
    inside = channel < C
    alpha_w = tl.load(alpha_ptr + channel, mask=inside, other=0.0)
    alpha_h = tl.load(alpha_ptr + C + channel, mask=inside, other=0.0)
    alpha_c = tl.load(alpha_ptr + 2 * C + channel, mask=inside, other=0.0)
    bias_w = tl.load(bias_w_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    bias_h = tl.load(bias_h_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    return alpha_w[None, :], alpha_h[None, :], alpha_c[None, :], (alpha_w * bias_w + alpha_h * bias_h)[None, :]
