"""The pass that gathers, out of shared memory: along one axis, a line of tokens, or a piece of it, at a time.

What an offset points to is read where a thread of its own has put it, in a bank of its own: a token's words lie side by side, one to a
thread, so wherever a warp's threads point to, they are served at once. (From global memory the L1 cache serves one line of 128 bytes at a
time.) Two or four channels of 16 bits that share an offset make a word. Of rank 1, ``tl.gather`` goes through shared memory; of a
higher rank, Triton makes shuffles of it.

BLOCK_Q only suits the lengths that it is chosen for: a longer line is several pieces, each gathered out of those that its offsets point to.
"""

from __future__ import annotations

from ..._triton import jit, tl
from ..gather import _interleaved, _taps


@jit
def _words(x, CHANNELS: tl.constexpr):
    """Channels ``[M, N, CHANNELS]`` of 16 bits as integers ``[M, N]``, the first in the lowest bits; a single one in float32."""
    M: tl.constexpr = x.shape[0]
    N: tl.constexpr = x.shape[1]
    if CHANNELS == 1:
        word = tl.reshape(x, (M, N)).to(tl.float32)
    else:
        bits = x.to(tl.uint16, bitcast=True)
        if CHANNELS == 2:
            first, second = tl.split(bits)
            word = first.to(tl.uint32) | second.to(tl.uint32) << 16
        else:
            evens, odds = tl.split(tl.reshape(bits, (M, N, 2, 2)))
            pairs = evens.to(tl.uint32) | odds.to(tl.uint32) << 16
            first, second = tl.split(pairs)
            word = first.to(tl.uint64) | second.to(tl.uint64) << 32
    return word


@jit
def _channel(word, i: tl.constexpr, CHANNELS: tl.constexpr, dtype: tl.constexpr):
    """The i-th channel of ``_words``, in float32."""
    if CHANNELS == 1:
        value = word
    else:
        half = (word if i < 2 else word >> 32).to(tl.uint32)
        if dtype == tl.float16:
            value = (half >> 16 * (i % 2)).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        else:  # the upper half of a float32
            value = (half << 16 if i % 2 == 0 else half & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value


@jit
def _fold_rows(values, ROWS: tl.constexpr):
    """Sums of values ``[M, N]`` as ``[ROWS, N]``: each of a single thread's."""
    PARTS: tl.constexpr = values.shape[0] // ROWS
    N: tl.constexpr = values.shape[1]
    return tl.sum(tl.reshape(values, (PARTS, ROWS, N)), 0)


@jit
def _add_up(sums, values, ROWS: tl.constexpr):
    """Adds each of values ``[M, N]`` to one of sums ``[ROWS, N]``."""
    new = ()
    for i in tl.static_range(len(sums)):
        new = new + (sums[i] + _fold_rows(values[i], ROWS),)  # type: ignore
    return new


@jit
def _pick(word, first, BLOCK_Q: tl.constexpr):
    """Of words ``[lines * BLOCK_Q, N]``, whose last row of a line is zeros, those at rows ``first`` of the line and one further on."""
    M: tl.constexpr = word.shape[0]
    N: tl.constexpr = word.shape[1]
    m, n = tl.arange(0, M), tl.arange(0, N)
    line = (m - m % BLOCK_Q)[:, None] * N + n[None, :]
    # Compared as unsigned numbers, the negative ones are large: they too are taken from the last row.
    at = line + tl.minimum(first.to(tl.uint32), BLOCK_Q - 1).to(tl.int32) * N
    after = line + tl.minimum((first + 1).to(tl.uint32), BLOCK_Q - 1).to(tl.int32) * N
    taken = tl.gather(tl.reshape(word, (M * N,)), tl.reshape(tl.join(at, after), (2 * M * N,)), 0)
    return tl.split(tl.reshape(taken, (M, N, 2)))


@jit
def _token_mix_gather_lines_kernel(
    x_ptr,  # [B, T, G * S], T = H * W tokens of a map, of which the axis is the rows or the columns (../../axes.py)
    offset_ptr,  # [B, T, G] along this axis, rows OFFSET_STRIDE apart
    gathered_ptr,  # [axes, B, T, G * S]
    partial_ptr,  # [B, TILES, PLANES, G * S] float32: sums over the tokens of one program: of those gathered, and along W their own
    B,
    H,
    W,
    TILES,  # programs per map
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    AXIS: tl.constexpr,
    PLANE: tl.constexpr,  # of the gathered tokens' sums; the last is of their own
    PLANES: tl.constexpr,
    CHANNELS: tl.constexpr,  # of a word, dividing S
    TOGETHER: tl.constexpr,  # pieces of lines that a program works on, BLOCK_L at a time
    BLOCK_L: tl.constexpr,
    BLOCK_Q: tl.constexpr,  # one more than the tokens of a piece
    BLOCK_E: tl.constexpr,  # words of a token
    ROWS: tl.constexpr,  # of sums, one a thread for each channel of a word
):
    C: tl.constexpr = G * S
    WORDS: tl.constexpr = C // CHANNELS
    PIECE: tl.constexpr = BLOCK_Q - 1
    N: tl.constexpr = BLOCK_L * BLOCK_Q
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    length, lines, step, between = (W, H, 1, W) if AXIS == 0 else (H, W, W, 1)
    image = (tl.program_id(0) // TILES).to(tl.int64)
    # What differs between programs is in the pointers, the rest known, as far as it can be: addresses are then additions of constants.
    k = tl.arange(0, BLOCK_E)
    e = tl.program_id(1) * BLOCK_E + k
    base = image * (H * W) * C + tl.program_id(1) * (BLOCK_E * CHANNELS)
    x_ptr += base
    gathered_ptr += base if AXIS == 0 else base + AXIS * tl.cast(B, tl.int64) * (H * W) * C
    offset_ptr += image * (H * W) * OFFSET_STRIDE
    if BLOCK_E * CHANNELS % S == 0:
        offset_ptr += tl.program_id(1) * (BLOCK_E * CHANNELS // S)
        g = k * CHANNELS // S
    else:
        g = e * CHANNELS // S
    pieces = tl.maximum(tl.cdiv(length, PIECE), 1)  # an image may be empty
    n = tl.arange(0, N)
    q, line = n % BLOCK_Q, n // BLOCK_Q
    token = q.to(tl.int64) * step + line.to(tl.int64) * between
    own = (token * C)[:, None, None] + (k * CHANNELS)[None, :, None] + tl.arange(0, CHANNELS)[None, None, :]
    pairs = tl.multiple_of(tl.max_contiguous(token[:, None] * OFFSET_STRIDE + g[None, :], (1, 2)), (1, 1))
    in_word = (e < WORDS)[None, :]
    sums = ()
    for _ in tl.static_range(CHANNELS):
        sums = sums + (tl.zeros((ROWS, BLOCK_E), tl.float32),)  # type: ignore
    owns = sums
    begin = tl.program_id(0) % TILES * TOGETHER
    first_line, start = begin // pieces * BLOCK_L, begin % pieces * PIECE
    for _tile in range(begin, tl.minimum(begin + TOGETHER, tl.cdiv(lines, BLOCK_L) * pieces)):
        in_line = (line < lines - first_line)[:, None] & in_word
        here = in_line & (q < tl.minimum(PIECE, length - start))[:, None]
        place = first_line * between + start * step
        x = tl.load(tl.max_contiguous(x_ptr + place * C + own, (1, 2, 4 * CHANNELS)), mask=here[:, :, None], other=0.0)
        offset = tl.load(offset_ptr + place * OFFSET_STRIDE + pairs, mask=here, other=float("inf")).to(tl.float32)
        word = _words(x, CHANNELS)
        first, _in_first, _in_second, t = _taps(offset, (start + q)[:, None], length)
        a, b = _pick(word, first - start, BLOCK_Q)
        if pieces > 1:
            low = tl.maximum(tl.min(tl.where(here, first, start)), 0)
            high = tl.minimum(tl.max(tl.where(here, first + 1, start)), length - 1)
            for other in range(low // PIECE * PIECE, high + 1, PIECE):
                tokens = tl.where(other == start, 0, tl.minimum(PIECE, length - other))
                there = in_line & (q < tokens)[:, None]
                at = (first_line * between + other * step) * C + own
                other_x = tl.load(tl.max_contiguous(x_ptr + at, (1, 2, 4 * CHANNELS)), mask=there[:, :, None], other=0.0)
                other_a, other_b = _pick(_words(other_x, CHANNELS), first - other, BLOCK_Q)
                if CHANNELS == 1:
                    a, b = a + other_a, b + other_b
                else:
                    a, b = a | other_a, b | other_b
        values = ()
        owned = ()
        for i in tl.static_range(CHANNELS):
            u, v = _channel(a, i, CHANNELS, dtype), _channel(b, i, CHANNELS, dtype)
            values = values + (u + t * (v - u),)  # type: ignore
            owned = owned + (_channel(word, i, CHANNELS, dtype),)  # type: ignore
        sums = _add_up(sums, values, ROWS)
        if AXIS == 0:
            owns = _add_up(owns, owned, ROWS)
        to = tl.max_contiguous(gathered_ptr + place * C + own, (1, 2, 4 * CHANNELS))
        tl.store(to, _interleaved(values, CHANNELS).to(dtype), mask=here[:, :, None])
        start += PIECE
        if start >= length:
            first_line, start = first_line + BLOCK_L, 0
    partial_ptr += tl.program_id(0).to(tl.int64) * (PLANES * C)
    for i in tl.static_range(CHANNELS):
        tl.store(partial_ptr + PLANE * C + e * CHANNELS + i, tl.sum(sums[i], 0), mask=e < WORDS)
        if AXIS == 0:
            tl.store(partial_ptr + (PLANES - 1) * C + e * CHANNELS + i, tl.sum(owns[i], 0), mask=e < WORDS)
