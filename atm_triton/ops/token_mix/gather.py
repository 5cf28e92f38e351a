"""The pass that gathers: along every axis once, written for the GEMMs that follow, and summed up for the means.

Only addresses, loads and an interpolation: no image size is compiled in, and any number of channels may share an offset. Offsets are read
16 bits by each thread, and a warp's threads cover adjacent channels (coalesced), which is what ``tl.multiple_of`` is for: ../gather.py.
"""

from __future__ import annotations

from ..._triton import jit, tl
from ..gather import _channels, _load_taps, _tap_addresses, _walk


@jit
def _token_mix_gather_kernel(
    x_ptr,  # [B, T, G * S], T = D * H * W tokens of a sample: frames, rows, columns; of 1 where there is no such axis
    offset_ptr,  # [B, T, AXES * G], rows OFFSET_STRIDE apart
    gathered_ptr,  # [AXES, B, T, G * S]: along W, H, D
    partial_ptr,  # [B, TILES, AXES + 1, G * S] float32: sums over the tokens of one program: gathered along each axis, and their own
    B,
    T,
    D,
    H,
    W,
    TILES,  # programs per sample
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    AXES: tl.constexpr,
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
    gathered_ptr += first_token * C
    plane = tl.cast(B, tl.int64) * T * C
    lane = tl.arange(0, BLOCK_N)
    row, column = (tile * TOKENS + lane) // W, (tile * TOKENS + lane) % W
    rows, columns = BLOCK_N // W, BLOCK_N % W
    if AXES == 3:
        frame, row = row // H, row % H
        frames, rows = rows // H, rows % H
    g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    i, in_i = _channels(tl.program_id(1) * BLOCK_G, G, S, BLOCK_G, BLOCK_S)
    sums = ()
    for _ in tl.static_range(AXES):
        sums = sums + (tl.zeros((BLOCK_N, BLOCK_G, BLOCK_S), tl.float32),)  # type: ignore
    sum_c = tl.zeros((BLOCK_N, BLOCK_G * BLOCK_S), tl.float32)
    pairs = tl.multiple_of(tl.max_contiguous(lane[:, None] * OFFSET_STRIDE + g[None, :], (1, 2)), (1, 1))
    source = lane[:, None] * C + (g * S)[None, :]
    own = lane[:, None] * C + i[None, :]
    target = source[:, :, None] + s[None, None, :]
    in_channel = (g < G)[:, None] & (s < S)[None, :]
    left = tl.minimum(TOKENS, T - tile * TOKENS)
    for start in range(0, left, BLOCK_N):
        here = (lane < left - start)[:, None]
        new = ()
        for axis in tl.static_range(AXES):
            position, length, step = (column, W, C) if axis == 0 else (row, H, W * C) if axis == 1 else (frame, D, H * W * C)
            offset = tl.load(offset_ptr + axis * G + pairs, mask=here & (g < G)[None, :], other=float("inf")).to(tl.float32)
            at, in_first, in_second, t = _tap_addresses(offset, position, length, step, source, s, S)
            a, b = _load_taps(x_ptr, at, step, in_first, in_second, BLOCK_S)
            gathered = a + t * (b - a)
            to = tl.max_contiguous(gathered_ptr + axis * plane + target, (1, 2, 4 * BLOCK_S))
            tl.store(to, gathered.to(gathered_ptr.dtype.element_ty), mask=here[:, :, None] & in_channel[None, :, :])
            new = new + (sums[axis] + gathered,)  # type: ignore
        sums = new
        sum_c += tl.load(x_ptr + own, mask=here & in_i[None, :], other=0.0).to(tl.float32)
        x_ptr += BLOCK_N * C
        offset_ptr += BLOCK_N * OFFSET_STRIDE
        gathered_ptr += BLOCK_N * C
        row, column = _walk(row, column, rows, columns, W)
        if AXES == 3:
            frame, row = _walk(frame, row - rows, frames, rows, H)
    partial = partial_ptr + tl.program_id(0).to(tl.int64) * ((AXES + 1) * C)
    channel = (g * S)[:, None] + s[None, :]
    for axis in tl.static_range(AXES):
        tl.store(partial + axis * C + channel, tl.sum(sums[axis], 0), mask=in_channel)
    tl.store(partial + AXES * C + i, tl.sum(sum_c, 0), mask=in_i)
