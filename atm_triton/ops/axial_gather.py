"""axial_gather: per token and offset channel, read along the row or the column where the offset points, by linear interpolation.

With p = j + offset[b, i, j, c // S] along W (likewise i along H):

    y[b, i, j, c] = sum over q of x[b, i, q, c] * max(0, 1 - |p - q|),   q inside the image

Every program owns BLOCK_N tokens in memory order, whatever the axis: only the distance in memory between neighbours differs, so H needs no
transposed copy, and narrow images waste no lanes. Sequences and videos are maps to the operator (../axes.py). gather.py has the
tiles and the load of both taps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.library import wrap_triton

from .. import flops, plain
from .._triton import OPS, jit, refuse_second_derivative, register_flop_formula, runs_kernels, tl, token_stride, triton, triton_op
from ..axes import as_maps, axes_of
from ..tuning import tables
from . import checks
from .gather import _line_sum, _load_taps, _scatter_taps, _taps


@jit
def _place(pid, H, W, ALONG_W: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tokens of program ``pid`` (int64), their positions on the axis, its length, and how many tokens apart its neighbours are."""
    base = pid.to(tl.int64) * BLOCK_N  # divided as a scalar: 64-bit division of every lane is slow
    lane = tl.arange(0, BLOCK_N)
    column = (base % W).to(tl.int32) + lane
    if ALONG_W:
        position, length, step = column % W, W, 1
    else:
        position, length, step = ((base // W % H).to(tl.int32) + column // W) % H, H, W
    return base + lane, position, length, step


@jit
def _axial_gather_fwd_kernel(
    x_ptr,  # [N, G * S], N = B * H * W tokens
    offset_ptr,  # [N, G], rows OFFSET_STRIDE apart
    y_ptr,  # [N, G * S]
    N,
    H,
    W,
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    ALONG_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    n, position, length, step = _place(tl.program_id(0), H, W, ALONG_W, BLOCK_N)
    g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    inside = (n < N)[:, None] & (g < G)[None, :]
    offset = tl.load(offset_ptr + n[:, None] * OFFSET_STRIDE + g[None, :], mask=inside, other=0.0).to(tl.float32)
    first, in_first, in_second, t = _taps(offset, position[:, None], length)
    channel = (g * S)[None, :, None] + s[None, None, :]
    at = ((n[:, None] + (first - position[:, None]) * step) * (G * S))[:, :, None] + channel
    mask = inside[:, :, None] & (s < S)[None, None, :]
    in_first, in_second, t = mask & in_first[:, :, None], mask & in_second[:, :, None], t[:, :, None]
    a, b = _load_taps(x_ptr, at, step * (G * S), in_first, in_second, BLOCK_S)
    own = (n * (G * S))[:, None, None] + channel
    y = (a + t * (b - a)).to(y_ptr.dtype.element_ty)
    tl.store(tl.max_contiguous(y_ptr + own, (1, 2, 4 * BLOCK_S)), y, mask=mask)


@jit
def _axial_gather_bwd_kernel(
    dy_ptr,  # [N, G * S]
    x_ptr,  # [N, G * S]
    offset_ptr,  # [N, G], rows OFFSET_STRIDE apart
    doffset_ptr,  # [N, G]
    dx_ptr,  # [N, G * S] float32 zeros, where SCATTER
    N,
    H,
    W,
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    ALONG_W: tl.constexpr,
    SCATTER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Gathers again for doffset and, where SCATTER, adds each tap's share of dy to dx atomically."""
    n, position, length, step = _place(tl.program_id(0), H, W, ALONG_W, BLOCK_N)
    g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    inside = (n < N)[:, None] & (g < G)[None, :]
    offset = tl.load(offset_ptr + n[:, None] * OFFSET_STRIDE + g[None, :], mask=inside, other=0.0).to(tl.float32)
    first, in_first, in_second, t = _taps(offset, position[:, None], length)
    channel = (g * S)[None, :, None] + s[None, None, :]
    at = ((n[:, None] + (first - position[:, None]) * step) * (G * S))[:, :, None] + channel
    mask = inside[:, :, None] & (s < S)[None, None, :]
    in_first, in_second, t = mask & in_first[:, :, None], mask & in_second[:, :, None], t[:, :, None]
    a, b = _load_taps(x_ptr, at, step * (G * S), in_first, in_second, BLOCK_S)
    own = (n * (G * S))[:, None, None] + channel
    dy = tl.load(tl.max_contiguous(dy_ptr + own, (1, 2, 4 * BLOCK_S)), mask=mask, other=0.0).to(tl.float32)
    doffset = tl.sum(dy * (b - a), 2)
    tl.store(doffset_ptr + n[:, None] * G + g[None, :], doffset.to(doffset_ptr.dtype.element_ty), mask=inside)
    if SCATTER:
        _scatter_taps(dx_ptr, at, step * (G * S), in_first, in_second, dy, t, BLOCK_S)


@jit
def _axial_gather_dx_kernel(
    dy_ptr,  # [N, G * S]
    offset_ptr,  # [N, G], rows OFFSET_STRIDE apart
    dx_ptr,  # [N, G * S]
    H,
    W,
    G: tl.constexpr,
    S: tl.constexpr,
    OFFSET_STRIDE: tl.constexpr,
    ALONG_W: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The deterministic dx: a program owns BLOCK_Q positions of one line and adds what every position of the line read there, in order."""
    line = tl.program_id(0).to(tl.int64)
    if ALONG_W:
        base, length, step = line * W, W, 1
    else:
        base, length, step = line // W * W * H + line % W, H, W
    q = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    PARTS: tl.constexpr = (S + BLOCK_S - 1) // BLOCK_S
    g = tl.program_id(2) // PARTS * BLOCK_G + tl.arange(0, BLOCK_G)
    first_part = tl.program_id(2) % PARTS * BLOCK_S
    shifts = ()
    for _part in tl.static_range(BLOCK_S):
        shifts = shifts + (0.0,)  # type: ignore
    dx = _line_sum(dy_ptr, offset_ptr, shifts, base, length, step, q, g, first_part, G, S, OFFSET_STRIDE, BLOCK_S, True)
    s = first_part + tl.arange(0, BLOCK_S)[None, :]
    at = ((base + q * step) * (G * S))[:, None, None] + ((g * S)[:, None] + s)[None, :, :]
    mask = (q < length)[:, None, None] & ((g < G)[:, None] & (s < S))[None, :, :]
    tl.store(tl.max_contiguous(dx_ptr + at, (1, 2, 4 * BLOCK_S)), dx.to(dx_ptr.dtype.element_ty), mask=mask)


AXIS_NOUNS = {"w": "along the row", "h": "along the column", "t": "along time"}

KERNELS = {"axial_gather": ("axial_gather_fwd",), "axial_gather_backward": ("axial_gather_bwd", "axial_gather_dx")}


@dataclass(frozen=True)
class Tile:
    elements: int  # of a program, about
    channels: int  # of a token, at most
    num_warps: int


# The first is the default: 16 values a thread, a 128-byte line of 16-bit channels a token. None of them has been timed on a GPU.
TILES = (
    Tile(2048, 64, 4),
    Tile(1024, 64, 4),
    Tile(4096, 64, 4),
    Tile(4096, 64, 8),
    Tile(2048, 128, 4),
    Tile(4096, 128, 8),
    Tile(2048, 32, 4),
)


@tables.distinct
def candidates(kernel: str, x: Tensor, groups: int) -> Iterator[dict[str, int]]:
    """Yield configurations, none of which depends on H or W, so that dynamic shapes need one compilation."""
    block_s = triton.next_power_of_2(int(x.shape[3]) // groups)
    most = triton.next_power_of_2(groups)
    positions = "BLOCK_N"
    if kernel == "axial_gather_dx":
        positions, block_s = "BLOCK_Q", min(block_s, 8)
    for tile in TILES:
        block_g = min(most, max(1, tile.channels // block_s))
        block_n = max(1, tile.elements // (block_g * block_s))
        yield {positions: block_n, "BLOCK_G": block_g, "BLOCK_S": block_s, "num_warps": tile.num_warps}


@triton_op("axial_gather")
def _axial_gather(x: Tensor, offset: Tensor, axis: str) -> Tensor:
    if not runs_kernels(x):
        return plain.axial_gather(x, offset, axis)
    x = x.contiguous()
    offset, stride = token_stride(offset)
    B, H, W, C = x.shape
    G = int(offset.shape[3])
    S = int(C) // G
    N = B * H * W
    y = torch.empty_like(x)
    config = tables.config("axial_gather_fwd", x, G, candidates)
    grid = (triton.cdiv(N, config["BLOCK_N"]), triton.cdiv(G, config["BLOCK_G"]))
    with torch.cuda.device_of(x):
        wrap_triton(_axial_gather_fwd_kernel)[grid](x, offset, y, N, H, W, G, S, stride, axis == "w", **config)
    return y


@triton_op("axial_gather_backward")
def _axial_gather_backward(dy: Tensor, x: Tensor, offset: Tensor, axis: str, deterministic: bool) -> tuple[Tensor, Tensor]:
    if not runs_kernels(x):
        return plain.axial_gather_backward(dy, x, offset, axis)
    x, dy = x.contiguous(), dy.contiguous()
    offset, stride = token_stride(offset)
    B, H, W, C = x.shape
    G = int(offset.shape[3])
    S = int(C) // G
    N = B * H * W
    along_w = axis == "w"
    dx = torch.empty_like(x) if deterministic else torch.zeros_like(x, dtype=torch.float32)
    doffset = torch.empty_like(offset, memory_format=torch.contiguous_format)
    config = tables.config("axial_gather_bwd", x, G, candidates)
    grid = (triton.cdiv(N, config["BLOCK_N"]), triton.cdiv(G, config["BLOCK_G"]))
    with torch.cuda.device_of(x):
        wrap_triton(_axial_gather_bwd_kernel)[grid](dy, x, offset, doffset, dx, N, H, W, G, S, stride, along_w, not deterministic, **config)
        if deterministic:
            config = tables.config("axial_gather_dx", x, G, candidates)
            lines, length = (B * H, W) if along_w else (B * W, H)
            blocks = triton.cdiv(G, config["BLOCK_G"]) * triton.cdiv(S, config["BLOCK_S"])
            line_grid = (lines, triton.cdiv(length, config["BLOCK_Q"]), blocks)
            wrap_triton(_axial_gather_dx_kernel)[line_grid](dy, offset, dx, H, W, G, S, stride, along_w, **config)
    return dx.to(x.dtype), doffset


def _setup_context(ctx, inputs, output):
    x, offset, ctx.axis = inputs
    ctx.save_for_backward(x, offset)


def _backward(ctx, dy):
    x, offset = ctx.saved_tensors
    return *_axial_gather_backward(dy, x, offset, ctx.axis, torch.are_deterministic_algorithms_enabled()), None


_axial_gather.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivative(_axial_gather_backward)
register_flop_formula(OPS.axial_gather)(flops.Formula(per_value=lambda x, *_, **__: flops.GATHER[0] * math.prod(x)))
register_flop_formula(OPS.axial_gather_backward)(flops.Formula(per_value=lambda dy, *_, **__: flops.GATHER[1] * math.prod(dy)))


def axial_gather(x: Tensor, offset: Tensor, axis: str) -> Tensor:
    """Gather each channel along one axis at ``position + offset``, by linear interpolation, zero outside (paper, section 3.2, eq. 2).

    Args:
        x: Tokens ``[B, H, W, C]``, any strides; of sequences ``[B, W, C]``, of videos and volumes ``[B, T, H, W, C]``.
        offset: Offsets in tokens ``[B, H, W, G]``, likewise, G dividing C; channel c uses offset channel ``c // (C // G)``. Its dtype may
            differ from x's, and autocast leaves it as it is. Infinities point outside and give zero; NaN gives NaN.
        axis: ``"w"`` reads along the row, ``"h"`` along the column, ``"t"`` along time or depth.

    Returns:
        A tensor as x, in its dtype; positions and weights are computed in float32 (float64 for float64 input).

    The gradient of x accumulates with atomics on a GPU; under ``torch.use_deterministic_algorithms(True)`` its order is fixed. A token's
    depends only on the gradients of the tokens that read it, finite or not.

    Raises:
        ValueError: a shape that does not fit, tensors on different devices, or another axis.
        TypeError: what is no dense tensor of floating point.
    """
    op = "axial_gather"
    checks.tensors(op, x=x, offset=offset)
    checks.tokens(op, "x", x)
    if axis not in tuple(axes_of(x)):
        known = " or ".join(f"{name!r} ({AXIS_NOUNS[name]})" for name in axes_of(x))
        raise ValueError(f"{op}: axis must be {known} of x {checks.show(x)}, got {axis!r}")
    if offset.ndim != x.ndim or offset.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"{op}: offset must be x's [B, *axes] and G offset channels, of x {checks.show(x)}, got {checks.show(offset)}")
    G, C = offset.shape[-1], x.shape[-1]
    if G == 0 or C % G:
        raise ValueError(
            f"{op}: the {G} offset channels must divide the {C} channels of x, got x {checks.show(x)}, offset {checks.show(offset)}"
        )
    (x,) = checks.to_autocast(x)
    maps, along = as_maps(x, axis)
    return _axial_gather(maps, as_maps(offset, axis)[0], along).view(x.shape)
