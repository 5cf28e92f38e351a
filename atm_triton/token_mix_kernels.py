"""The kernels of token_mix; token_mix.py says what they compute together.

A program owns BLOCK_N tokens of one sample. Channels come as tiles [tokens, offset channels, channels of an offset], read as one [tokens,
channels] operand by the products. Addresses are 64-bit up to a sample's first token and 32-bit inside it: up to a fifth fewer registers on
sm_90. token_mix refuses samples of 2^31 values.
"""

from __future__ import annotations

from ._triton import jit, tl
from .axial_gather import _taps


@jit
def _on_axis(n, H, W, AXIS: tl.constexpr):
    """Of the tokens ``n`` of a sample: positions on axis 0 (along W) or 1 (along H), its length, how many tokens apart neighbours are."""
    if AXIS == 0:
        position, length, step = n % W, W, 1
    else:
        position, length, step = n // W, H, W
    return position, length, step


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
    sample = (tl.program_id(0) // TILES).to(tl.int64)
    x_ptr += sample * T * C
    offset_ptr += sample * T * OFFSET_STRIDE
    g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    in_share = (s < S)[None, None, :]
    channel = (g * S)[:, None] + s[None, :]
    in_channel = (g < G)[:, None] & (s < S)[None, :]
    sum_w = tl.zeros((BLOCK_N, BLOCK_G, BLOCK_S), tl.float32)
    sum_h = tl.zeros((BLOCK_N, BLOCK_G, BLOCK_S), tl.float32)
    sum_c = tl.zeros((BLOCK_N, BLOCK_G * BLOCK_S), tl.float32)
    i, in_i = _channels(tl.program_id(1) * BLOCK_G, G, S, BLOCK_G, BLOCK_S)
    first_token = tl.program_id(0) % TILES * TOKENS
    for start in range(first_token, tl.minimum(first_token + TOKENS, T), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (n < T)[:, None] & (g < G)[None, :]
        for axis in tl.static_range(2):
            position, length, step = _on_axis(n, H, W, axis)
            at = tl.max_contiguous(n[:, None] * OFFSET_STRIDE + (axis * G + g)[None, :], (1, 1))
            offset = tl.load(offset_ptr + at, mask=inside, other=float("inf")).to(tl.float32)
            first, in_first, in_second, t = _taps(offset, position[:, None], length)
            source = ((n[:, None] + (first - position[:, None]) * step) * C)[:, :, None] + channel[None, :, :]
            a = tl.load(x_ptr + source, mask=in_first[:, :, None] & in_share, other=0.0).to(tl.float32)
            b = tl.load(x_ptr + source + step * C, mask=in_second[:, :, None] & in_share, other=0.0).to(tl.float32)
            gathered = a + t[:, :, None] * (b - a)
            if axis == 0:
                sum_w += gathered
            else:
                sum_h += gathered
        sum_c += tl.load(x_ptr + (n * C)[:, None] + i[None, :], mask=(n < T)[:, None] & in_i[None, :], other=0.0).to(tl.float32)
    partial = partial_ptr + tl.program_id(0).to(tl.int64) * (3 * C)
    tl.store(partial + channel, tl.sum(sum_w, 0), mask=in_channel)
    tl.store(partial + C + channel, tl.sum(sum_h, 0), mask=in_channel)
    tl.store(partial + 2 * C + i, tl.sum(sum_c, 0), mask=in_i)


@jit
def _token_mix_fwd_kernel(
    x_ptr,  # [B, T, C], C = G * S, T = H * W tokens of a sample
    offset_ptr,  # [B, T, 2 * G], rows OFFSET_STRIDE apart
    weight_ptr,  # [3, C, C]; where FOLD, [3, B, C, C]
    alpha_ptr,  # [B, 3, C] float32, not read where FOLD
    bias_ptr,  # [B, C] float32, added before the projection if there is one
    proj_ptr,  # [C, C], read where PROJ
    proj_bias_ptr,  # [C]
    y_ptr,  # [B, T, C]
    B,
    T,
    H,
    W,
    TILES,  # of tokens per sample
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    FOLD: tl.constexpr,
    PROJ: tl.constexpr,  # BLOCK_O covers all C outputs
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    C: tl.constexpr = G * S
    O_TILES: tl.constexpr = (C + BLOCK_O - 1) // BLOCK_O
    # The last tokens first: the means' pass has left those in the cache. Programs of the same tokens are neighbours.
    tile = B * TILES - 1 - tl.program_id(0) // O_TILES
    sample = (tile // TILES).to(tl.int64)
    x_ptr += sample * T * C
    offset_ptr += sample * T * OFFSET_STRIDE
    y_ptr += sample * T * C
    n = tile % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    o = tl.program_id(0) % O_TILES * BLOCK_O + tl.arange(0, BLOCK_O)
    s = tl.arange(0, BLOCK_S)
    in_share = (s < S)[None, None, :]
    total = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
    for branch in tl.static_range(3):
        acc = total
        matrix = weight_ptr + (branch * B + sample) * (C * C)
        if not FOLD:
            acc = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
            matrix = weight_ptr + branch * C * C
        for start in range(0, G, BLOCK_G):
            i, in_i = _channels(start, G, S, BLOCK_G, BLOCK_S)
            weight = tl.load(matrix + o[None, :] * C + i[:, None], mask=(o < C)[None, :] & in_i[:, None], other=0.0)
            if branch < 2:
                g = start + tl.arange(0, BLOCK_G)
                inside = (n < T)[:, None] & (g < G)[None, :]
                position, length, step = _on_axis(n, H, W, branch)
                at = n[:, None] * OFFSET_STRIDE + (branch * G + g)[None, :]
                offset = tl.load(offset_ptr + at, mask=inside, other=float("inf")).to(tl.float32)
                first, in_first, in_second, t = _taps(offset, position[:, None], length)
                source = ((n[:, None] + (first - position[:, None]) * step) * C)[:, :, None] + (g * S)[None, :, None] + s[None, None, :]
                a = tl.load(x_ptr + source, mask=in_first[:, :, None] & in_share, other=0.0).to(tl.float32)
                b = tl.load(x_ptr + source + step * C, mask=in_second[:, :, None] & in_share, other=0.0).to(tl.float32)
                gathered = a + t[:, :, None] * (b - a)
                operand = tl.reshape(gathered, (BLOCK_N, BLOCK_G * BLOCK_S)).to(weight.dtype)
            else:
                operand = tl.load(x_ptr + (n * C)[:, None] + i[None, :], mask=(n < T)[:, None] & in_i[None, :], other=0.0)
            acc = tl.dot(operand, weight, acc, input_precision="ieee")
        if FOLD:
            total = acc
        else:
            total += tl.load(alpha_ptr + (sample * 3 + branch) * C + o, mask=o < C, other=0.0)[None, :] * acc
    total += tl.load(bias_ptr + sample * C + o, mask=o < C, other=0.0)[None, :]
    if PROJ:
        proj = tl.load(proj_ptr + o[None, :] * C + o[:, None], mask=(o < C)[None, :] & (o < C)[:, None], other=0.0)
        total = tl.dot(total.to(proj.dtype), proj, input_precision="ieee")
        total += tl.load(proj_bias_ptr + o, mask=o < C, other=0.0).to(tl.float32)[None, :]
    at = (n * C)[:, None] + o[None, :]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=(n < T)[:, None] & (o < C)[None, :])


@jit
def _token_mix_dw_kernel(
    dy_ptr,  # [B, T, C], C = G * S: the gradient of y where FOLD, else of the fused branches
    x_ptr,  # [B, T, C]
    offset_ptr,  # [B, T, 2 * G], rows OFFSET_STRIDE apart
    weight_ptr,  # [3, C, C], not read where FOLD
    alpha_ptr,  # [B, 3, C] float32, not read where FOLD
    product_ptr,  # [3, P, C, C] float32, P programs: where FOLD one for each chunk of a sample, else for SAMPLES samples, weighted by alpha
    dalpha_ptr,  # [B, I_TILES, 3, C] float32, not written where FOLD
    dsum_ptr,  # [B, CHUNKS, C] float32: the sum of dy over tokens
    B,
    T,
    H,
    W,
    SAMPLES,
    TOKENS,  # of a chunk, a multiple of BLOCK_N
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    FOLD: tl.constexpr,
    CHUNKS: tl.constexpr,  # per sample; 1 where not FOLD
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """dy.T @ gathered for the three branches, of one block of outputs and inputs."""
    C: tl.constexpr = G * S
    BLOCK_I: tl.constexpr = BLOCK_G * BLOCK_S
    I_TILES: tl.constexpr = (G + BLOCK_G - 1) // BLOCK_G
    program = tl.program_id(0)
    i_tile = tl.program_id(1) % I_TILES
    o = tl.program_id(1) // I_TILES * BLOCK_O + tl.arange(0, BLOCK_O)
    g = i_tile * BLOCK_G + tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    in_share = (s < S)[None, None, :]
    i, in_i = _channels(i_tile * BLOCK_G, G, S, BLOCK_G, BLOCK_S)
    channel = (g * S)[None, :, None] + s[None, None, :]
    at_matrix = o[:, None] * C + i[None, :]
    in_matrix = (o < C)[:, None] & in_i[None, :]
    product = product_ptr + program.to(tl.int64) * (C * C) + at_matrix
    branch_stride = tl.cast(tl.num_programs(0), tl.int64) * (C * C)
    total_w = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    total_h = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    total_c = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    chunk = program % CHUNKS
    first_sample = program // CHUNKS * SAMPLES
    for sample in range(first_sample, tl.minimum(first_sample + SAMPLES, B)):
        acc_w = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
        acc_h = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
        acc_c = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
        dsum = tl.zeros((BLOCK_O,), tl.float32)
        row = tl.cast(sample, tl.int64) * T
        dy_sample, x_sample, offset_sample = dy_ptr + row * C, x_ptr + row * C, offset_ptr + row * OFFSET_STRIDE
        for start in range(chunk * TOKENS, tl.minimum((chunk + 1) * TOKENS, T), BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            at = (n * C)[:, None] + o[None, :]
            dy = tl.load(dy_sample + at, mask=(n < T)[:, None] & (o < C)[None, :], other=0.0)
            dsum += tl.sum(dy.to(tl.float32), 0)
            dy = tl.trans(dy)
            inside = (n < T)[:, None] & (g < G)[None, :]
            for branch in tl.static_range(3):
                if branch < 2:
                    position, length, step = _on_axis(n, H, W, branch)
                    at = n[:, None] * OFFSET_STRIDE + (branch * G + g)[None, :]
                    offset = tl.load(offset_sample + at, mask=inside, other=float("inf")).to(tl.float32)
                    first, in_first, in_second, t = _taps(offset, position[:, None], length)
                    source = ((n[:, None] + (first - position[:, None]) * step) * C)[:, :, None] + channel
                    a = tl.load(x_sample + source, mask=in_first[:, :, None] & in_share, other=0.0).to(tl.float32)
                    b = tl.load(x_sample + source + step * C, mask=in_second[:, :, None] & in_share, other=0.0).to(tl.float32)
                    operand = tl.reshape(a + t[:, :, None] * (b - a), (BLOCK_N, BLOCK_I)).to(dy.dtype)
                else:
                    operand = tl.load(x_sample + (n * C)[:, None] + i[None, :], mask=(n < T)[:, None] & in_i[None, :], other=0.0)
                if branch == 0:
                    acc_w = tl.dot(dy, operand, acc_w, input_precision="ieee")
                elif branch == 1:
                    acc_h = tl.dot(dy, operand, acc_h, input_precision="ieee")
                else:
                    acc_c = tl.dot(dy, operand, acc_c, input_precision="ieee")
        if i_tile == 0:
            tl.store(dsum_ptr + (sample * CHUNKS + chunk) * C + o, dsum, mask=o < C)
        if FOLD:
            total_w, total_h, total_c = acc_w, acc_h, acc_c
        else:
            for branch in tl.static_range(3):
                alpha = tl.load(alpha_ptr + (sample * 3 + branch) * C + o, mask=o < C, other=0.0)
                weight = tl.load(weight_ptr + branch * C * C + at_matrix, mask=in_matrix, other=0.0).to(tl.float32)
                if branch == 0:
                    acc = acc_w
                    total_w += alpha[:, None] * acc
                elif branch == 1:
                    acc = acc_h
                    total_h += alpha[:, None] * acc
                else:
                    acc = acc_c
                    total_c += alpha[:, None] * acc
                at = ((sample * I_TILES + i_tile) * 3 + branch) * C + o
                tl.store(dalpha_ptr + at, tl.sum(acc * weight, 1), mask=o < C)
    tl.store(product, total_w, mask=in_matrix)
    tl.store(product + branch_stride, total_h, mask=in_matrix)
    tl.store(product + 2 * branch_stride, total_c, mask=in_matrix)


@jit
def _token_mix_dx_kernel(
    dy_ptr,  # [B, T, C], C = G * S: the gradient of y where FOLD, else of the fused branches
    x_ptr,  # [B, T, C]
    offset_ptr,  # [B, T, 2 * G], rows OFFSET_STRIDE apart
    weight_ptr,  # [3, C, C]; where FOLD, [3, B, C, C]
    alpha_ptr,  # [B, 3, C] float32, not read where FOLD
    dmean_ptr,  # [B, 3, C] float32: what every gathered token gets through the means
    doffset_ptr,  # [B, T, 2 * G]
    dx_ptr,  # where SCATTER, [B, T, C] float32 zeros; else the gradients of the gathered tokens [3, B, T, C]
    B,
    T,
    H,
    W,
    TILES,  # of tokens per sample
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    FOLD: tl.constexpr,
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
    g = i_tile * BLOCK_G + tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    in_share = (s < S)[None, None, :]
    i, in_i = _channels(i_tile * BLOCK_G, G, S, BLOCK_G, BLOCK_S)
    channel = (g * S)[None, :, None] + s[None, None, :]
    inside = (n < T)[:, None] & (g < G)[None, :]
    own = (n * C)[:, None] + i[None, :]
    in_own = (n < T)[:, None] & in_i[None, :]
    for branch in tl.static_range(3):
        matrix = weight_ptr + branch * C * C
        if FOLD:
            matrix = weight_ptr + (branch * B + sample) * (C * C)
        acc = tl.zeros((BLOCK_N, BLOCK_G * BLOCK_S), tl.float32)
        for start in range(0, C, BLOCK_O):
            o = start + tl.arange(0, BLOCK_O)
            dy = tl.load(dy_ptr + (n * C)[:, None] + o[None, :], mask=(n < T)[:, None] & (o < C)[None, :], other=0.0)
            weight = tl.load(matrix + o[:, None] * C + i[None, :], mask=(o < C)[:, None] & in_i[None, :], other=0.0)
            if not FOLD:
                alpha = tl.load(alpha_ptr + (sample * 3 + branch) * C + o, mask=o < C, other=0.0)
                dy = (dy.to(tl.float32) * alpha[None, :]).to(weight.dtype)
            acc = tl.dot(dy, weight, acc, input_precision="ieee")
        acc += tl.load(dmean_ptr + (sample * 3 + branch) * C + i, mask=in_i, other=0.0)[None, :]
        if branch < 2:
            d = tl.reshape(acc, (BLOCK_N, BLOCK_G, BLOCK_S))
            position, length, step = _on_axis(n, H, W, branch)
            at = n[:, None] * OFFSET_STRIDE + (branch * G + g)[None, :]
            offset = tl.load(offset_ptr + at, mask=inside, other=float("inf")).to(tl.float32)
            first, in_first, in_second, t = _taps(offset, position[:, None], length)
            source = ((n[:, None] + (first - position[:, None]) * step) * C)[:, :, None] + channel
            mask_a = in_first[:, :, None] & in_share
            mask_b = in_second[:, :, None] & in_share
            a = tl.load(x_ptr + source, mask=mask_a, other=0.0).to(tl.float32)
            b = tl.load(x_ptr + source + step * C, mask=mask_b, other=0.0).to(tl.float32)
            doffset = tl.sum(d * (b - a), 2)
            at = n[:, None] * (2 * G) + (branch * G + g)[None, :]
            tl.store(doffset_ptr + at, doffset.to(doffset_ptr.dtype.element_ty), mask=inside)
            if SCATTER:
                tl.atomic_add(dx_ptr + source, d * (1.0 - t)[:, :, None], mask=mask_a, sem="relaxed")
                tl.atomic_add(dx_ptr + source + step * C, d * t[:, :, None], mask=mask_b, sem="relaxed")
        elif SCATTER:
            tl.atomic_add(dx_ptr + own, acc, mask=in_own, sem="relaxed")
        if not SCATTER:
            plane = dx_ptr + tl.cast(branch * B, tl.int64) * T * C
            tl.store(plane + own, acc.to(dx_ptr.dtype.element_ty), mask=in_own)
