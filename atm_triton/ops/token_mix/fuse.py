"""The weighted sum of the branches, where it is not folded into their matrices: the sum of alpha_k times branch k, and its gradient.

As in branch_fusion, but for alpha, which is known, and the biases of the FCs, which PyTorch's GEMMs would add in a pass of their own.
"""

from __future__ import annotations

from ..._triton import jit, tl
from ..branch_fusion import _sum


@jit
def _token_mix_fuse_kernel(
    w_ptr,  # [B, T, C]: of the tokens gathered along W, without the bias
    h_ptr,  # [B, T, C], of three branches or four
    t_ptr,  # [B, T, C], of four
    c_ptr,  # [B, T, C]
    alpha_ptr,  # [B, BRANCHES, C] float32
    bias_w_ptr,  # [C]
    bias_h_ptr,  # [C], of three branches or four
    bias_t_ptr,  # [C], of four
    y_ptr,  # [B, T, C]
    T,
    TILES,  # programs per sample
    C: tl.constexpr,
    BRANCHES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample = (tl.program_id(0) // TILES).to(tl.int64)
    n = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    alphas, shift = _alphas_and_shift(alpha_ptr + sample * (BRANCHES * C), bias_w_ptr, bias_h_ptr, bias_t_ptr, channel, C, BRANCHES)
    mask = (n < T)[:, None] & (channel < C)[None, :]
    index = (sample * T + n)[:, None] * C + channel[None, :]
    shares = ()
    for k in tl.static_range(BRANCHES):
        branch_ptr = c_ptr if k == BRANCHES - 1 else w_ptr if k == 0 else h_ptr if k == 1 else t_ptr
        shares = shares + (alphas[k] * tl.load(branch_ptr + index, mask=mask, other=0.0).to(tl.float32),)  # type: ignore
    tl.store(y_ptr + index, (_sum(shares) + shift).to(y_ptr.dtype.element_ty), mask=mask)


@jit
def _token_mix_fuse_backward_kernel(
    dy_ptr,  # [B, T, C]
    w_ptr,  # [B, T, C]
    h_ptr,  # [B, T, C], of three branches or four
    t_ptr,  # [B, T, C], of four
    c_ptr,  # [B, T, C]
    alpha_ptr,  # [B, BRANCHES, C] float32
    bias_w_ptr,  # [C]
    bias_h_ptr,  # [C], of three branches or four
    bias_t_ptr,  # [C], of four
    dw_ptr,  # [B, T, C]
    dh_ptr,  # [B, T, C], of three branches or four
    dt_ptr,  # [B, T, C], of four
    dc_ptr,  # [B, T, C]
    y_ptr,  # [B, T, C]: the sum again, for the projection's gradient
    partial_ptr,  # [B, TILES, BRANCHES + 1, C] float32: over the tokens of one program, dy times each branch, and dy
    T,
    TILES,
    C: tl.constexpr,
    BRANCHES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample = (tl.program_id(0) // TILES).to(tl.int64)
    n = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    alphas, shift = _alphas_and_shift(alpha_ptr + sample * (BRANCHES * C), bias_w_ptr, bias_h_ptr, bias_t_ptr, channel, C, BRANCHES)
    mask = (n < T)[:, None] & (channel < C)[None, :]
    index = (sample * T + n)[:, None] * C + channel[None, :]
    dy = tl.load(dy_ptr + index, mask=mask, other=0.0).to(tl.float32)
    for k in tl.static_range(BRANCHES):
        dbranch_ptr = dc_ptr if k == BRANCHES - 1 else dw_ptr if k == 0 else dh_ptr if k == 1 else dt_ptr
        tl.store(dbranch_ptr + index, (alphas[k] * dy).to(dbranch_ptr.dtype.element_ty), mask=mask)
    branches = ()
    shares = ()
    for k in tl.static_range(BRANCHES):
        branch_ptr = c_ptr if k == BRANCHES - 1 else w_ptr if k == 0 else h_ptr if k == 1 else t_ptr
        branches = branches + (tl.load(branch_ptr + index, mask=mask, other=0.0).to(tl.float32),)  # type: ignore
        shares = shares + (alphas[k] * branches[k],)  # type: ignore
    tl.store(y_ptr + index, (_sum(shares) + shift).to(y_ptr.dtype.element_ty), mask=mask)
    partial = partial_ptr + tl.program_id(0).to(tl.int64) * ((BRANCHES + 1) * C) + channel
    for k in tl.static_range(BRANCHES):
        tl.store(partial + k * C, tl.sum(dy * branches[k], 0), mask=channel < C)
    tl.store(partial + BRANCHES * C, tl.sum(dy, 0), mask=channel < C)


@jit
def _alphas_and_shift(alpha_ptr, bias_w_ptr, bias_h_ptr, bias_t_ptr, channel, C: tl.constexpr, BRANCHES: tl.constexpr):
    """The weights of one sample's branches, each ``[1, channels]``, and what the biases add to its tokens."""
    inside = channel < C
    alphas = ()
    for k in tl.static_range(BRANCHES):
        alphas = alphas + (tl.load(alpha_ptr + k * C + channel, mask=inside, other=0.0)[None, :],)  # type: ignore
    shares = ()
    for k in tl.static_range(BRANCHES - 1):
        bias_ptr = bias_w_ptr if k == 0 else bias_h_ptr if k == 1 else bias_t_ptr
        shares = shares + (alphas[k] * tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)[None, :],)  # type: ignore
    return alphas, _sum(shares)
