"""The kernel of token_mix's means, and how all its kernels find their channels and tokens: see kernels.py."""

from __future__ import annotations

from ..._triton import jit, tl
from ..axial_gather import _taps


@jit
def _channels(first_group, G: tl.constexpr, S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr):
    """The channels of BLOCK_G groups in a row, and which of them there are."""
    k = tl.arange(0, BLOCK_G * BLOCK_S)
    if S == BLOCK_S:  # in a way that the compiler sees as neighbours in memory
        channel = first_group * S + k
        inside = channel < G * S
    else:
        group = first_group + k // BLOCK_S
        channel = group * S + k % BLOCK_S
        inside = (group < G) & (k % BLOCK_S < S)
    return channel, inside


@jit
def _walk(row, column, rows, columns, W):
    """Where tokens are that lie ``rows`` and ``columns`` < W further on: dividing every token's number would cost as much as its gather."""
    column += columns
    wraps = column >= W
    return row + rows + wraps.to(tl.int32), tl.where(wraps, column - W, column)


@jit
def _token_mix_mean_kernel(
    x_ptr,  # [B, T, G * S], T = H * W tokens of a sample
    offset_ptr,  # [B, T, 2 * G], rows OFFSET_STRIDE apart
    partial_ptr,  # [B, TILES, 3, G * S] float32: sums of the gathered tokens of one program
    T,
    H,
    W,
    TILES,  # programs per sample
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    TOKENS: tl.constexpr,  # of a program, a multiple of BLOCK_N
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    C: tl.constexpr = G * S
    tile = tl.program_id(0) % TILES
    first_token = (tl.program_id(0) // TILES).to(tl.int64) * T + tile * TOKENS
    x_ptr += first_token * C
    offset_ptr += first_token * OFFSET_STRIDE
    lane = tl.arange(0, BLOCK_N)
    row, column = (tile * TOKENS + lane) // W, (tile * TOKENS + lane) % W
    g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    in_share = (s < S)[None, None, :]
    i, in_i = _channels(tl.program_id(1) * BLOCK_G, G, S, BLOCK_G, BLOCK_S)
    sum_w = tl.zeros((BLOCK_N, BLOCK_G, BLOCK_S), tl.float32)
    sum_h = tl.zeros((BLOCK_N, BLOCK_G, BLOCK_S), tl.float32)
    sum_c = tl.zeros((BLOCK_N, BLOCK_G * BLOCK_S), tl.float32)
    pairs = tl.multiple_of(tl.max_contiguous(lane[:, None] * OFFSET_STRIDE + g[None, :], (1, 2)), (1, 1))
    source = lane[:, None] * C + (g * S)[None, :]
    own = lane[:, None] * C + i[None, :]
    rows, columns = BLOCK_N // W, BLOCK_N % W
    left = tl.minimum(TOKENS, T - tile * TOKENS)
    for start in range(0, left, BLOCK_N):
        here = (lane < left - start)[:, None]
        for axis in tl.static_range(2):
            position, length, step = (column, W, C) if axis == 0 else (row, H, W * C)
            offset = tl.load(offset_ptr + axis * G + pairs, mask=here & (g < G)[None, :], other=float("inf")).to(tl.float32)
            first, in_first, in_second, t = _taps(offset, position[:, None], length)
            at = (source + (first - position[:, None]) * step)[:, :, None] + s[None, None, :]
            a_ptr = tl.max_contiguous(x_ptr + at, (1, 2, 4 * BLOCK_S))
            b_ptr = tl.max_contiguous(x_ptr + at + step, (1, 2, 4 * BLOCK_S))
            a = tl.load(a_ptr, mask=in_first[:, :, None] & in_share, other=0.0).to(tl.float32)
            b = tl.load(b_ptr, mask=in_second[:, :, None] & in_share, other=0.0).to(tl.float32)
            gathered = a + t[:, :, None] * (b - a)
            if axis == 0:
                sum_w += gathered
            else:
                sum_h += gathered
        sum_c += tl.load(x_ptr + own, mask=here & in_i[None, :], other=0.0).to(tl.float32)
        x_ptr += BLOCK_N * C
        offset_ptr += BLOCK_N * OFFSET_STRIDE
        row, column = _walk(row, column, rows, columns, W)
    partial = partial_ptr + tl.program_id(0).to(tl.int64) * (3 * C)
    channel = (g * S)[:, None] + s[None, :]
    in_channel = (g < G)[:, None] & (s < S)[None, :]
    tl.store(partial + channel, tl.sum(sum_w, 0), mask=in_channel)
    tl.store(partial + C + channel, tl.sum(sum_h, 0), mask=in_channel)
    tl.store(partial + 2 * C + i, tl.sum(sum_c, 0), mask=in_i)
