"""What gathering kernels share: where tokens are, where their offsets point, and the load of both taps.

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
    """Where tokens are that lie ``rows`` and ``columns`` < W further on: dividing every token's number would cost as much as its gather."""
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
    """Where the first tap's channels are, which of the first and second taps' there are, and the weight of the second.

    ``source [tokens, offset channels]``: the tokens' own channels; ``step``: how far apart in memory neighbours on the axis are.
    """
    first, in_first, in_second, t = _taps(offset, position[:, None], length)
    at = (source + (first - position[:, None]) * step)[:, :, None] + s[None, None, :]
    in_share = (s < S)[None, None, :]
    return at, in_first[:, :, None] & in_share, in_second[:, :, None] & in_share, t[:, :, None]


@jit
def _load_taps(x_ptr, at, step, in_first, in_second, BLOCK_S: tl.constexpr):
    """Both taps in float32, zero outside."""
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
