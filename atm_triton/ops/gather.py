"""Parts that gathering kernels share: where tokens are, where their offsets point, and the load of both taps.

Tiles are [tokens, offset channels, channels of an offset], so that the channels that share an offset are loaded together. A warp's threads
cover adjacent channels of a token (coalesced), each those of one offset: gathers are L1-bound, and spread over tokens, every thread would
ask for a cache line of its own. Triton lays threads out by what addresses seem to have in a row, so ``tl.max_contiguous`` says so of the
pointers to such tiles; before 3.9 Triton spreads them over tokens otherwise.

A helper may take pointers as long as no store's address depends on what it returns: else PyTorch takes the pointer for written, and clones
what it points to. So addresses and loads are two helpers.
"""

from __future__ import annotations

from .._triton import jit, tl


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
    """Places of tokens that lie ``rows`` and ``columns`` < W further on: dividing every token's number would cost as much as its gather."""
    column += columns
    wraps = column >= W
    return row + rows + wraps.to(tl.int32), tl.where(wraps, column - W, column)


@jit
def _taps(offset, position, length):
    """The first of the two positions that the offset falls between, whether each is inside, and the weight of the second."""
    # Clamped so that the integer is small; a NaN becomes -edge, which is outside, and stays a NaN in the weight.
    edge = length + 1.0
    clamped = tl.minimum(tl.maximum(offset, -edge), edge)
    floor = tl.floor(clamped)
    first = position + floor.to(tl.int32)
    # Compared as unsigned numbers, the negative ones are large: one comparison for both ends.
    in_first = first.to(tl.uint32) < tl.cast(length, tl.uint32)
    in_second = (first + 1).to(tl.uint32) < tl.cast(length, tl.uint32)
    return first, in_first, in_second, tl.where(offset == offset, clamped - floor, offset)


@jit
def _tap_addresses(offset, position, length, step, source, s, S: tl.constexpr):
    """Addresses of the first tap's channels, which of the first and second taps' there are, and the weight of the second.

    ``source [tokens, offset channels]``: the tokens' own channels; ``step``: how far apart in memory neighbours on the axis are.
    """
    first, in_first, in_second, t = _taps(offset, position[:, None], length)
    at = (source + (first - position[:, None]) * step)[:, :, None] + s[None, None, :]
    in_share = (s < S)[None, None, :]
    return at, in_first[:, :, None] & in_share, in_second[:, :, None] & in_share, t[:, :, None]


@jit
def _load_taps(x_ptr, at, step, in_first, in_second, BLOCK_S: tl.constexpr):
    """The two taps in float32, zero outside."""
    first = tl.load(tl.max_contiguous(x_ptr + at, (1, 2, 4 * BLOCK_S)), mask=in_first, other=0.0)
    second = tl.load(tl.max_contiguous(x_ptr + at + step, (1, 2, 4 * BLOCK_S)), mask=in_second, other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@jit
def _scatter_taps(dx_ptr, at, step, in_first, in_second, d, t, BLOCK_S: tl.constexpr):
    """Adds each tap's share of ``d`` to dx, atomically."""
    first_ptr = tl.max_contiguous(dx_ptr + at, (1, 2, 4 * BLOCK_S))
    second_ptr = tl.max_contiguous(dx_ptr + at + step, (1, 2, 4 * BLOCK_S))
    tl.atomic_add(first_ptr, d * (1.0 - t), mask=in_first, sem="relaxed")
    tl.atomic_add(second_ptr, d * t, mask=in_second, sem="relaxed")


@jit
def _readers(offset_ptr, base, length, step, q, g, G: tl.constexpr, STRIDE: tl.constexpr):
    """Range of a line's tokens that read at positions ``q`` of it: mostly few, and all others add nothing."""
    BLOCK: tl.constexpr = q.shape[0]
    first_q = tl.min(q, 0)
    begin = tl.full((BLOCK, g.shape[0]), 2147483647, tl.int32)
    end = tl.zeros((BLOCK, g.shape[0]), tl.int32)
    for start in range(0, length, BLOCK):
        j = start + tl.arange(0, BLOCK)
        at = ((base + j * step) * STRIDE)[:, None] + g[None, :]
        offset = tl.load(offset_ptr + at, mask=(j < length)[:, None] & (g < G)[None, :], other=float("inf")).to(tl.float32)
        first, in_first, in_second, t = _taps(offset, j[:, None], length)
        reads = (first >= first_q - 1) & (first < first_q + BLOCK) & (j < length)[:, None]
        begin = tl.minimum(begin, tl.where(reads, j[:, None], 2147483647))
        end = tl.maximum(end, tl.where(reads, j[:, None] + 1, 0))
    return tl.min(begin), tl.max(end)


@jit
def _line_sum(
    dy_ptr,
    offset_ptr,
    shifts,
    base,
    length,
    step,
    q,
    g,
    first_part,
    G: tl.constexpr,
    S: tl.constexpr,
    STRIDE: tl.constexpr,
    PARTS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Sums of what a line's tokens read at positions ``q``, ``[positions, offset channels, PARTS]``: dy plus ``shifts``, weighted by it.

    In the order of the line, so the same every time. ``base``: the line's first token; ``step``: how many tokens apart its neighbours are.
    MASKED: what did not read at a position adds nothing there, also where its dy is not finite, which times a weight of 0 is NaN.
    Every part, a channel of an offset, is a tensor of its own: a weight is then computed once for all parts, and by one thread.
    """
    totals = ()
    for _part in tl.static_range(PARTS):
        totals = totals + (tl.zeros((q.shape[0], g.shape[0]), tl.float32),)  # type: ignore
    begin, end = _readers(offset_ptr, base, length, step, q, g, G, STRIDE)
    offset, dys = _load_token(dy_ptr, offset_ptr, base + begin * step, begin < end, g, first_part, G, S, STRIDE, PARTS)
    for j in range(begin, end):
        # What the next token needs is on its way while this one is worked on.
        next_offset, next_dys = _load_token(dy_ptr, offset_ptr, base + (j + 1) * step, j + 1 < end, g, first_part, G, S, STRIDE, PARTS)
        first, in_first, in_second, t = _taps(offset.to(tl.float32), j, length)
        if dy_ptr.dtype.element_ty == tl.float32:
            weight = tl.where(q[:, None] == first[None, :] + 1, t[None, :], 0.0)  # no position is outside
            weight = tl.where(q[:, None] == first[None, :], 1.0 - t[None, :], weight)
        else:  # two instructions instead of four, and all the bits that 16 are worth
            p = tl.where(t == t, first.to(tl.float32) + t, float("inf"))
            weight = tl.clamp(1.0 - tl.abs(q.to(tl.float32)[:, None] - p[None, :]), 0.0, 1.0)
        reads = (q[:, None] >= first[None, :]) & (q[:, None] <= first[None, :] + 1)
        new = ()
        for part in tl.static_range(PARTS):
            share = weight * (dys[part].to(tl.float32) + shifts[part])[None, :]
            new = new + (totals[part] + (tl.where(reads, share, 0.0) if MASKED else share),)  # type: ignore
        totals, offset, dys = new, next_offset, next_dys
    return _interleaved(totals, PARTS)


@jit
def _load_token(dy_ptr, offset_ptr, n, there, g, first_part, G: tl.constexpr, S: tl.constexpr, STRIDE: tl.constexpr, PARTS: tl.constexpr):
    """The offsets of token ``n``, and each part of its dy, if it is there."""
    groups = tl.where(there, G, 0)
    offset = tl.load(offset_ptr + n * STRIDE + g, mask=g < groups, other=float("inf"))
    dys = ()
    for part in tl.static_range(PARTS):
        mask = g < (groups if S % PARTS == 0 else tl.where(first_part + part < S, groups, 0))
        dys = dys + (tl.load(dy_ptr + n * (G * S) + g * S + first_part + part, mask=mask, other=0.0),)  # type: ignore
    return offset, dys


@jit
def _interleaved(parts, PARTS: tl.constexpr):
    """Tensors ``[M, N]`` as one ``[M, N, PARTS]``."""
    if PARTS == 1:
        found = parts[0][:, :, None]
    else:
        evens = ()
        odds = ()
        for i in tl.static_range(PARTS // 2):
            evens, odds = evens + (parts[2 * i],), odds + (parts[2 * i + 1],)  # type: ignore
        found = tl.join(_interleaved(evens, PARTS // 2), _interleaved(odds, PARTS // 2))
        found = tl.reshape(found, (parts[0].shape[0], parts[0].shape[1], PARTS))
    return found
