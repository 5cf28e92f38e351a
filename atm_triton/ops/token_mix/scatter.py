"""Gradients of the offsets and of the tokens from those of the gathered tokens."""

from __future__ import annotations

from ..._triton import jit, tl
from ..gather import _line_sum, _load_taps, _scatter_taps, _tap_addresses


@jit
def _token_mix_doffset_kernel(
    d_w_ptr,  # [B, T, G * S]: the gradient of the tokens gathered along W, without what they get through the means
    d_h_ptr,  # [B, T, G * S]: along H, of two axes or three
    d_t_ptr,  # [B, T, G * S]: along D, of three
    x_ptr,  # [B, T, G * S]
    offset_ptr,  # [B, T, AXES * G], rows OFFSET_STRIDE apart
    dmean_ptr,  # [B, AXES + 1, G * S] float32: what every gathered token gets through the means
    doffset_ptr,  # [B, T, AXES * G]
    dx_ptr,  # [B, T, G * S] float32, added to where SCATTER
    T,
    D,
    H,
    W,
    TILES,  # of tokens per sample
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    AXES: tl.constexpr,
    SCATTER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Gathers again, for the slope of the segment that an offset falls in."""
    C: tl.constexpr = G * S
    G_TILES: tl.constexpr = (G + BLOCK_G - 1) // BLOCK_G
    tile = tl.program_id(0) // G_TILES
    sample = (tile // TILES).to(tl.int64)
    x_ptr += sample * T * C
    offset_ptr += sample * T * OFFSET_STRIDE
    doffset_ptr += sample * T * (AXES * G)
    dx_ptr += sample * T * C
    n = tile % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    row, column = n // W, n % W
    if AXES == 3:
        frame, row = row // H, row % H
    g = tl.program_id(0) % G_TILES * BLOCK_G + tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    inside = (n < T)[:, None] & (g < G)[None, :]
    channel = (g * S)[:, None] + s[None, :]
    in_channel = (g < G)[:, None] & (s < S)[None, :]
    source = (n * C)[:, None] + (g * S)[None, :]
    own = source[:, :, None] + s[None, None, :]
    in_own = (n < T)[:, None, None] & in_channel[None, :, :]
    for axis in tl.static_range(AXES):
        d_ptr = (d_w_ptr if axis == 0 else d_h_ptr if axis == 1 else d_t_ptr) + sample * T * C
        position, length, step = (column, W, C) if axis == 0 else (row, H, W * C) if axis == 1 else (frame, D, H * W * C)
        at = tl.multiple_of(tl.max_contiguous(n[:, None] * OFFSET_STRIDE + (axis * G + g)[None, :], (1, 2)), (1, 1))
        offset = tl.load(offset_ptr + at, mask=inside, other=float("inf")).to(tl.float32)
        at, in_first, in_second, t = _tap_addresses(offset, position, length, step, source, s, S)
        a, b = _load_taps(x_ptr, at, step, in_first, in_second, BLOCK_S)
        d = tl.load(tl.max_contiguous(d_ptr + own, (1, 2, 4 * BLOCK_S)), mask=in_own, other=0.0).to(tl.float32)
        d += tl.load(dmean_ptr + (sample * (AXES + 1) + axis) * C + channel, mask=in_channel, other=0.0)[None, :, :]
        doffset = tl.sum(d * (b - a), 2).to(doffset_ptr.dtype.element_ty)
        tl.store(doffset_ptr + n[:, None] * (AXES * G) + (axis * G + g)[None, :], doffset, mask=inside)
        if SCATTER:
            _scatter_taps(dx_ptr, at, step, in_first, in_second, d, t, BLOCK_S)


@jit
def _token_mix_dx_kernel(
    d_ptr,  # [B, T, G * S]: the gradient of the tokens gathered along one axis, without what they get through the means
    begin_ptr,  # [B, T, G * S]: along W, the gradient of the tokens' own branch, likewise; then what was found along the axis before
    offset_ptr,  # [B, T, G], rows OFFSET_STRIDE apart
    dmean_ptr,  # [B, AXES + 1, G * S] float32: what every token gets through the means
    dx_ptr,  # [B, T, G * S]
    D,  # maps of a sample
    H,  # of a map, of which the axis is the rows or the columns (../../axes.py)
    W,
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    AXES: tl.constexpr,
    AXIS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The gradient of x in a fixed order, along one axis: a program owns BLOCK_Q positions of one line."""
    C: tl.constexpr = G * S
    line = tl.program_id(0).to(tl.int64)
    if AXIS == 0:
        image, base, length, step = line // H, line * W, W, 1
    else:
        image = line // W
        base, length, step = image * W * H + line % W, H, W
    PARTS: tl.constexpr = (S + BLOCK_S - 1) // BLOCK_S
    q = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    g = tl.program_id(2) // PARTS * BLOCK_G + tl.arange(0, BLOCK_G)
    first_part = tl.program_id(2) % PARTS * BLOCK_S
    dmean_ptr += image // D * ((AXES + 1) * C)
    shifts = ()
    for part in tl.static_range(BLOCK_S):
        at = AXIS * C + g * S + first_part + part
        shifts = shifts + (tl.load(dmean_ptr + at, mask=g < tl.where(first_part + part < S, G, 0), other=0.0),)  # type: ignore
    dx = _line_sum(d_ptr, offset_ptr, shifts, base, length, step, q, g, first_part, G, S, OFFSET_STRIDE, BLOCK_S, False)
    s = first_part + tl.arange(0, BLOCK_S)[None, :]
    channel = (g * S)[:, None] + s
    mask = (g < G)[:, None] & (s < S)
    own = ((base + q * step) * C)[:, None, None] + channel[None, :, :]
    in_own = (q < length)[:, None, None] & mask[None, :, :]
    dx += tl.load(tl.max_contiguous(begin_ptr + own, (1, 2, 4 * BLOCK_S)), mask=in_own, other=0.0).to(tl.float32)
    if AXIS == 0:
        dx += tl.load(dmean_ptr + AXES * C + channel, mask=mask, other=0.0)[None, :, :]
    tl.store(tl.max_contiguous(dx_ptr + own, (1, 2, 4 * BLOCK_S)), dx.to(dx_ptr.dtype.element_ty), mask=in_own)
