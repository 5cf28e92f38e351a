"""The kernels of token_mix; op.py says what they compute together.

A program owns BLOCK_N tokens of one sample. Channels come as tiles [tokens, offset channels, channels of an offset], read as one [tokens,
channels] operand by the products. Addresses are 64-bit up to a sample's first token and 32-bit inside it: up to a fifth fewer registers on
sm_90. token_mix refuses samples of 2^31 values. gather.py says how a warp's threads are laid out, and why; offsets are read likewise,
16 bits by each thread, which is what ``tl.multiple_of`` is for.
"""

from __future__ import annotations

from ..._triton import jit, tl
from ..gather import _channels, _load_taps, _scatter_taps, _tap_addresses, _walk


@jit
def _token_mix_fwd_kernel(
    x_ptr,  # [B, T, C], C = G * S, T = H * W tokens of a sample
    offset_ptr,  # [B, T, 2 * G], rows OFFSET_STRIDE apart
    weight_ptr,  # [3, C, C]; where FOLD, [3, B, C, C]
    steps_ptr,  # [B, 3, C] float32, not read where FOLD: what the sum is multiplied by after each branch
    bias_ptr,  # [B, C] float32, added before the projection if there is one
    proj_ptr,  # [C, C], read where PROJ
    proj_bias_ptr,  # [C]
    y_ptr,  # [B, T, C]
    d_ptr,  # [B, T, C], read where DALPHA: the gradient of y, which is not projected then
    partial_ptr,  # [B, TILES + 1, 4, C] float32, written where DALPHA: over the tokens d times the sum after each branch, and d
    B,
    T,
    H,
    W,
    TILES,  # of tokens per sample
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    FOLD: tl.constexpr,
    PROJ: tl.constexpr,  # BLOCK_O and BLOCK_R cover all C outputs
    DALPHA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,  # the outputs after BLOCK_O, which no power of two covers; or 0
):
    """The tokens gathered by a program are the right operand of its products, and so written to shared memory once for all outputs."""
    C: tl.constexpr = G * S
    BLOCK_P: tl.constexpr = BLOCK_O + BLOCK_R
    O_TILES: tl.constexpr = (C + BLOCK_P - 1) // BLOCK_P
    # The last tokens first: the means' pass has left those in the cache. Programs of the same tokens are neighbours.
    tile = B * TILES - 1 - tl.program_id(0) // O_TILES
    sample = (tile // TILES).to(tl.int64)
    x_ptr += sample * T * C
    offset_ptr += sample * T * OFFSET_STRIDE
    y_ptr += sample * T * C
    d_ptr += sample * T * C
    n = tile % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    row, column = n // W, n % W
    o = tl.program_id(0) % O_TILES * BLOCK_P + tl.arange(0, BLOCK_O)
    s = tl.arange(0, BLOCK_S)
    total = tl.zeros((BLOCK_O, BLOCK_N), tl.float32)
    if BLOCK_R:
        r = tl.program_id(0) % O_TILES * BLOCK_P + BLOCK_O + tl.arange(0, BLOCK_R)
        rest = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    for branch in tl.static_range(3):
        matrix = weight_ptr + branch * C * C
        if FOLD:
            matrix = weight_ptr + (branch * B + sample) * (C * C)
        for start in range(0, G, BLOCK_G):
            i, in_i = _channels(start, G, S, BLOCK_G, BLOCK_S)
            if branch < 2:
                g = start + tl.arange(0, BLOCK_G)
                inside = (n < T)[:, None] & (g < G)[None, :]
                if branch == 0:
                    position, length, step = column, W, C
                else:
                    position, length, step = row, H, W * C
                at = tl.multiple_of(tl.max_contiguous(n[:, None] * OFFSET_STRIDE + (branch * G + g)[None, :], (1, 2)), (1, 1))
                offset = tl.load(offset_ptr + at, mask=inside, other=float("inf")).to(tl.float32)
                source = (n * C)[:, None] + (g * S)[None, :]
                at, in_first, in_second, t = _tap_addresses(offset, position, length, step, source, s, S)
                a, b = _load_taps(x_ptr, at, step, in_first, in_second, BLOCK_S)
                gathered = a + t * (b - a)
                operand = tl.reshape(gathered, (BLOCK_N, BLOCK_G * BLOCK_S)).to(x_ptr.dtype.element_ty)
            else:
                operand = tl.load(x_ptr + (n * C)[:, None] + i[None, :], mask=(n < T)[:, None] & in_i[None, :], other=0.0)
            operand = tl.trans(operand)
            weight = tl.load(matrix + o[:, None] * C + i[None, :], mask=(o < C)[:, None] & in_i[None, :], other=0.0)
            total = tl.dot(weight, operand, total, input_precision="ieee")
            if BLOCK_R:
                weight = tl.load(matrix + r[:, None] * C + i[None, :], mask=(r < C)[:, None] & in_i[None, :], other=0.0)
                rest = tl.dot(weight, operand, rest, input_precision="ieee")
        if DALPHA:
            partial = partial_ptr + (sample * (TILES + 1) + tile % TILES) * (4 * C)
            d = tl.load(d_ptr + (n * C)[:, None] + o[None, :], mask=(n < T)[:, None] & (o < C)[None, :], other=0.0).to(tl.float32)
            d = tl.trans(d)
            tl.store(partial + branch * C + o, tl.sum(total * d, 1), mask=o < C)
            if branch == 2:
                tl.store(partial + 3 * C + o, tl.sum(d, 1), mask=o < C)
            if BLOCK_R:
                d = tl.load(d_ptr + (n * C)[:, None] + r[None, :], mask=(n < T)[:, None] & (r < C)[None, :], other=0.0).to(tl.float32)
                d = tl.trans(d)
                tl.store(partial + branch * C + r, tl.sum(rest * d, 1), mask=r < C)
                if branch == 2:
                    tl.store(partial + 3 * C + r, tl.sum(d, 1), mask=r < C)
        if not FOLD:
            steps = steps_ptr + (sample * 3 + branch) * C
            total *= tl.load(steps + o, mask=o < C, other=0.0)[:, None]
            if BLOCK_R:
                rest *= tl.load(steps + r, mask=r < C, other=0.0)[:, None]
    total += tl.load(bias_ptr + sample * C + o, mask=o < C, other=0.0)[:, None]
    mixed = total.to(y_ptr.dtype.element_ty)
    if BLOCK_R:
        rest += tl.load(bias_ptr + sample * C + r, mask=r < C, other=0.0)[:, None]
        mixed_rest = rest.to(y_ptr.dtype.element_ty)
    y_row = (n * C)[:, None]
    if PROJ:
        BLOCK_Y: tl.constexpr = min(BLOCK_O, 64)
        for start in range(0, C, BLOCK_Y):
            p = start + tl.arange(0, BLOCK_Y)
            weight = tl.load(proj_ptr + p[:, None] * C + o[None, :], mask=(p < C)[:, None] & (o < C)[None, :], other=0.0)
            y = tl.dot(weight, mixed, input_precision="ieee")
            if BLOCK_R:
                weight = tl.load(proj_ptr + p[:, None] * C + r[None, :], mask=(p < C)[:, None] & (r < C)[None, :], other=0.0)
                y = tl.dot(weight, mixed_rest, y, input_precision="ieee")
            y += tl.load(proj_bias_ptr + p, mask=p < C, other=0.0).to(tl.float32)[:, None]
            y = tl.trans(y.to(y_ptr.dtype.element_ty))
            tl.store(y_ptr + y_row + p[None, :], y, mask=(n < T)[:, None] & (p < C)[None, :])
    else:
        tl.store(y_ptr + y_row + o[None, :], tl.trans(mixed), mask=(n < T)[:, None] & (o < C)[None, :])
        if BLOCK_R:
            tl.store(y_ptr + y_row + r[None, :], tl.trans(mixed_rest), mask=(n < T)[:, None] & (r < C)[None, :])


@jit
def _token_mix_dw_kernel(
    dy_ptr,  # [B, T, C], C = G * S: the gradient of y where FOLD, else of the fused branches
    x_ptr,  # [B, T, C]
    offset_ptr,  # [B, T, 2 * G], rows OFFSET_STRIDE apart
    alpha_ptr,  # [B, 3, C] float32, not read where FOLD
    product_ptr,  # [3, P, C, C] float32, P programs: each a chunk of SAMPLES samples, weighted by alpha unless FOLD
    B,
    T,
    H,
    W,
    SAMPLES,  # 1 where FOLD
    TOKENS,  # of a chunk, a multiple of BLOCK_N
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    FOLD: tl.constexpr,
    CHUNKS: tl.constexpr,  # per sample
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,  # the outputs after BLOCK_O, which no power of two covers; or 0
):
    """dy.T @ gathered, of one branch and one block of inputs, for all outputs if they fit, so that nothing is gathered twice."""
    C: tl.constexpr = G * S
    BLOCK_P: tl.constexpr = BLOCK_O + BLOCK_R
    I_TILES: tl.constexpr = (G + BLOCK_G - 1) // BLOCK_G
    BLOCKS: tl.constexpr = 3 * I_TILES * ((C + BLOCK_P - 1) // BLOCK_P)
    block = tl.program_id(0) % BLOCKS  # those of the same tokens are neighbours
    branch = block % 3
    first_group = block // 3 % I_TILES * BLOCK_G
    first_output = block // (3 * I_TILES) * BLOCK_P
    program = tl.program_id(0) // BLOCKS
    g = first_group + tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    i, in_i = _channels(first_group, G, S, BLOCK_G, BLOCK_S)
    o = first_output + tl.arange(0, BLOCK_O)
    total = tl.zeros((BLOCK_O, BLOCK_G * BLOCK_S), tl.float32)
    alpha = tl.full((BLOCK_O,), 1.0, tl.float32)
    if BLOCK_R:
        r = first_output + BLOCK_O + tl.arange(0, BLOCK_R)
        rest = tl.zeros((BLOCK_R, BLOCK_G * BLOCK_S), tl.float32)
        alpha_rest = tl.full((BLOCK_R,), 1.0, tl.float32)
    chunk = program % CHUNKS
    lane = tl.arange(0, BLOCK_N)
    rows, columns = BLOCK_N // W, BLOCK_N % W
    first_row, first_column = (chunk * TOKENS + lane) // W, (chunk * TOKENS + lane) % W
    first_sample = program // CHUNKS * SAMPLES
    for sample in range(first_sample, tl.minimum(first_sample + SAMPLES, B)):
        first_token = tl.cast(sample, tl.int64) * T
        if not FOLD:  # the sum so far, in units of this sample's alpha; one below any rounding is as good as one that is smaller
            alphas = alpha_ptr + (tl.cast(sample, tl.int64) * 3 + branch) * C
            new = tl.load(alphas + o, mask=o < C, other=1.0)
            new = tl.where(new < 1e-18, 1e-18, new)
            total *= (alpha / new)[:, None]
            alpha = new
            if BLOCK_R:
                new_rest = tl.load(alphas + r, mask=r < C, other=1.0)
                new_rest = tl.where(new_rest < 1e-18, 1e-18, new_rest)
                rest *= (alpha_rest / new_rest)[:, None]
                alpha_rest = new_rest
        row, column = first_row, first_column
        for start in range(chunk * TOKENS, tl.minimum((chunk + 1) * TOKENS, T), BLOCK_N):
            n = start + lane
            if branch < 2:
                inside = (n < T)[:, None] & (g < G)[None, :]
                position, length, step = column, W, C
                if branch == 1:
                    position, length, step = row, H, W * C
                pairs = tl.multiple_of(tl.max_contiguous(n[:, None] * OFFSET_STRIDE + (branch * G + g)[None, :], (1, 2)), (1, 1))
                offset = tl.load(offset_ptr + first_token * OFFSET_STRIDE + pairs, mask=inside, other=float("inf")).to(tl.float32)
                source = (n * C)[:, None] + (g * S)[None, :]
                at, in_first, in_second, t = _tap_addresses(offset, position, length, step, source, s, S)
                a, b = _load_taps(x_ptr + first_token * C, at, step, in_first, in_second, BLOCK_S)
                gathered = a + t * (b - a)
                operand = tl.reshape(gathered, (BLOCK_N, BLOCK_G * BLOCK_S)).to(x_ptr.dtype.element_ty)
            else:
                own = (n * C)[:, None] + i[None, :]
                operand = tl.load(x_ptr + first_token * C + own, mask=(n < T)[:, None] & in_i[None, :], other=0.0)
            dy = tl.load(dy_ptr + first_token * C + (n * C)[:, None] + o[None, :], mask=(n < T)[:, None] & (o < C)[None, :], other=0.0)
            total = tl.dot(tl.trans(dy), operand, total, input_precision="ieee")
            if BLOCK_R:
                dy = tl.load(dy_ptr + first_token * C + (n * C)[:, None] + r[None, :], mask=(n < T)[:, None] & (r < C)[None, :], other=0.0)
                rest = tl.dot(tl.trans(dy), operand, rest, input_precision="ieee")
            row, column = _walk(row, column, rows, columns, W)
    product_ptr += (branch * tl.cast(tl.num_programs(0) // BLOCKS, tl.int64) + program) * (C * C)
    tl.store(product_ptr + o[:, None] * C + i[None, :], total * alpha[:, None], mask=(o < C)[:, None] & in_i[None, :])
    if BLOCK_R:
        tl.store(product_ptr + r[:, None] * C + i[None, :], rest * alpha_rest[:, None], mask=(r < C)[:, None] & in_i[None, :])


@jit
def _token_mix_dx_kernel(
    dy_ptr,  # [B, T, C], C = G * S: the gradient of y where FOLD, else of the fused branches
    x_ptr,  # [B, T, C]
    offset_ptr,  # [B, T, 2 * G], rows OFFSET_STRIDE apart
    weight_ptr,  # [3, C, C]; where FOLD, [3, B, C, C]
    alpha_ptr,  # [B, 3, C] float32, not read where FOLD
    dmean_ptr,  # [B, 3, C] float32: what every gathered token gets through the means
    doffset_ptr,  # [B, T, 2 * G], not written where CENTRE
    dx_ptr,  # where CENTRE or SCATTER, [B, T, C] float32; else the gradients of the tokens gathered along both axes, [2, B, T, C]
    B,
    T,
    H,
    W,
    TILES,  # of tokens per sample
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    FOLD: tl.constexpr,
    CENTRE: tl.constexpr,  # the branch of the tokens themselves, which writes dx; else the other two
    SCATTER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """The gradient of the gathered tokens in registers; from there the offsets' and, where SCATTER, x's, added atomically."""
    C: tl.constexpr = G * S
    I_TILES: tl.constexpr = (G + BLOCK_G - 1) // BLOCK_G
    tile = tl.program_id(0) // I_TILES
    i_tile = tl.program_id(0) % I_TILES
    sample = (tile // TILES).to(tl.int64)
    dy_ptr += sample * T * C
    x_ptr += sample * T * C
    offset_ptr += sample * T * OFFSET_STRIDE
    doffset_ptr += sample * T * (2 * G)
    dx_ptr += sample * T * C
    n = tile % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    row, column = n // W, n % W
    g = i_tile * BLOCK_G + tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    i, in_i = _channels(i_tile * BLOCK_G, G, S, BLOCK_G, BLOCK_S)
    inside = (n < T)[:, None] & (g < G)[None, :]
    own = (n * C)[:, None] + i[None, :]
    in_own = (n < T)[:, None] & in_i[None, :]
    for branch in tl.static_range(2 if CENTRE else 0, 3 if CENTRE else 2):
        matrix = weight_ptr + branch * C * C
        if FOLD:
            matrix = weight_ptr + (branch * B + sample) * (C * C)
        acc = tl.zeros((BLOCK_G * BLOCK_S, BLOCK_N), tl.float32)
        for start in range(0, C, BLOCK_O):
            o = start + tl.arange(0, BLOCK_O)
            dy = tl.load(dy_ptr + (n * C)[:, None] + o[None, :], mask=(n < T)[:, None] & (o < C)[None, :], other=0.0)
            weight = tl.load(matrix + o[:, None] * C + i[None, :], mask=(o < C)[:, None] & in_i[None, :], other=0.0)
            if not FOLD:
                alpha = tl.load(alpha_ptr + (sample * 3 + branch) * C + o, mask=o < C, other=0.0)
                dy = (dy.to(tl.float32) * alpha[None, :]).to(weight.dtype)
            acc = tl.dot(tl.trans(weight), tl.trans(dy), acc, input_precision="ieee")
        d = tl.trans(acc) + tl.load(dmean_ptr + (sample * 3 + branch) * C + i, mask=in_i, other=0.0)[None, :]
        if CENTRE:
            tl.store(dx_ptr + own, d, mask=in_own)
        else:
            if not SCATTER:
                plane = dx_ptr + tl.cast(branch * B, tl.int64) * T * C
                tl.store(plane + own, d.to(dx_ptr.dtype.element_ty), mask=in_own)
            d = tl.reshape(d, (BLOCK_N, BLOCK_G, BLOCK_S))
            if branch == 0:
                position, length, step = column, W, C
            else:
                position, length, step = row, H, W * C
            at = tl.multiple_of(tl.max_contiguous(n[:, None] * OFFSET_STRIDE + (branch * G + g)[None, :], (1, 2)), (1, 1))
            offset = tl.load(offset_ptr + at, mask=inside, other=float("inf")).to(tl.float32)
            source = (n * C)[:, None] + (g * S)[None, :]
            at, in_first, in_second, t = _tap_addresses(offset, position, length, step, source, s, S)
            a, b = _load_taps(x_ptr, at, step, in_first, in_second, BLOCK_S)
            doffset = tl.sum(d * (b - a), 2).to(doffset_ptr.dtype.element_ty)
            tl.store(doffset_ptr + n[:, None] * (2 * G) + (branch * G + g)[None, :], doffset, mask=inside)
            if SCATTER:
                _scatter_taps(dx_ptr, at, step, in_first, in_second, d, t, BLOCK_S)
