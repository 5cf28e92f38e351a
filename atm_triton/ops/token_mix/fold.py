"""The GEMM where alpha and the projection are folded into matrices of each sample: of K = BRANCHES * C, from two tensors."""

from __future__ import annotations

from ..._triton import jit, tl


@jit
def _token_mix_fold_kernel(
    gathered_ptr,  # [BRANCHES - 1, B, T, C]: along each axis
    x_ptr,  # [B, T, C]
    matrix_ptr,  # [BRANCHES, B, O, C]
    bias_ptr,  # [B, O] float32
    y_ptr,  # [B, T, O]
    B,
    T,
    TILES,  # of tokens per sample
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    BRANCHES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Mix BLOCK_N tokens of one sample into BLOCK_O outputs. The programs of the same tokens are neighbours."""
    O_TILES: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    tile = tl.program_id(0) // O_TILES
    sample = (tile // TILES).to(tl.int64)
    n = tile % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    o = tl.program_id(0) % O_TILES * BLOCK_O + tl.arange(0, BLOCK_O)
    total = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
    for branch in tl.static_range(BRANCHES):
        tokens_ptr = x_ptr if branch == BRANCHES - 1 else gathered_ptr + tl.cast(branch * B, tl.int64) * T * C
        for start in range(0, C, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            at = (n * C)[:, None] + k[None, :]
            tokens = tl.load(tokens_ptr + sample * T * C + at, mask=(n < T)[:, None] & (k < C)[None, :], other=0.0)
            at = (o * C)[:, None] + k[None, :]
            matrix = tl.load(matrix_ptr + (branch * B + sample) * (O * C) + at, mask=(o < O)[:, None] & (k < C)[None, :], other=0.0)
            total = tl.dot(tokens, tl.trans(matrix), total, input_precision="ieee")
    total += tl.load(bias_ptr + sample * O + o, mask=o < O, other=0.0)[None, :]
    y = y_ptr + sample * T * O + (n * O)[:, None] + o[None, :]
    tl.store(y, total.to(y_ptr.dtype.element_ty), mask=(n < T)[:, None] & (o < O)[None, :])
