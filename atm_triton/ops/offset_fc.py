"""offset_fc: where each token looks, a LayerNorm and a linear layer in one kernel: LayerNorm(x) @ weight.T + bias.

A program owns BLOCK_N tokens by BLOCK_O offset channels. It walks over the channels of its tokens twice, for the mean and for the centred
variance (the second time they come from the cache), and a third time to normalise them on their way into the GEMM: the normalised
tokens are never written.

Backward: with xhat the normalised tokens before the affine map, doffset.T @ xhat [O, C], the gradient of the weight scaled by the norm's,
and dbias, the sum of doffset, give all four parameter gradients (plain.offset_fc_parameter_grads), so one GEMM over all tokens serves them;
tokens are split over programs, each writes its own part, and a small sum adds them in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.library import wrap_triton

from .. import flops, plain
from .._triton import OPS, jit, refuse_second_derivative, register_flop_formula, runs_kernels, tl, triton, triton_op
from ..tuning import tables
from . import checks


@jit
def _offset_fc_fwd_kernel(
    x_ptr,  # [N, C]
    norm_weight_ptr,  # [C]
    norm_bias_ptr,  # [C]
    weight_ptr,  # [O, C]
    bias_ptr,  # [O]
    offset_ptr,  # [N, O]
    mean_ptr,  # [N] float32
    rstd_ptr,  # [N] float32
    N,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    EPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    row = n[:, None] * C

    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        total += tl.load(x_ptr + row + c[None, :], mask=(n < N)[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    mean = tl.sum(total, 1) / C
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        mask = (n < N)[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + row + c[None, :], mask=mask, other=0.0).to(tl.float32)
        centred = tl.where(mask, x - mean[:, None], 0.0)
        total += centred * centred
    rstd = 1.0 / tl.sqrt(tl.sum(total, 1) / C + EPS)

    acc = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        in_c = c < C
        x = tl.load(x_ptr + row + c[None, :], mask=(n < N)[:, None] & in_c[None, :], other=0.0).to(tl.float32)
        gamma = tl.load(norm_weight_ptr + c, mask=in_c, other=0.0).to(tl.float32)
        beta = tl.load(norm_bias_ptr + c, mask=in_c, other=0.0).to(tl.float32)
        normed = (x - mean[:, None]) * rstd[:, None] * gamma[None, :] + beta[None, :]  # zero past C, as gamma and beta are
        weight = tl.load(weight_ptr + o[None, :] * C + c[:, None], mask=(o < O)[None, :] & in_c[:, None], other=0.0)
        acc = tl.dot(normed.to(weight.dtype), weight, acc, input_precision="ieee")
    bias = tl.load(bias_ptr + o, mask=o < O, other=0.0).to(tl.float32)
    offset = (acc + bias[None, :]).to(offset_ptr.dtype.element_ty)
    tl.store(offset_ptr + n[:, None] * O + o[None, :], offset, mask=(n < N)[:, None] & (o < O)[None, :])
    if tl.program_id(1) == 0:
        tl.store(mean_ptr + n, mean, mask=n < N)
        tl.store(rstd_ptr + n, rstd, mask=n < N)


@jit
def _offset_fc_dx_kernel(
    doffset_ptr,  # [N, O]
    x_ptr,  # [N, C]
    mean_ptr,  # [N] float32
    rstd_ptr,  # [N] float32
    norm_weight_ptr,  # [C]
    weight_ptr,  # [O, C]
    dx_ptr,  # [N, C]
    N,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """d = (doffset @ weight) * gamma;  dx = (d - mean(d) - xhat * mean(d * xhat)) * rstd. The GEMM is computed twice rather than kept."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = n < N
    row = n[:, None] * C
    mean = tl.load(mean_ptr + n, mask=in_n, other=0.0)
    rstd = tl.load(rstd_ptr + n, mask=in_n, other=0.0)
    sum_d = tl.zeros((BLOCK_N,), tl.float32)
    sum_dx = tl.zeros((BLOCK_N,), tl.float32)
    for sweep in tl.static_range(2):
        for start in range(0, C, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            in_c = c < C
            d = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
            for o_start in range(0, O, BLOCK_O):
                o = o_start + tl.arange(0, BLOCK_O)
                doffset = tl.load(doffset_ptr + n[:, None] * O + o[None, :], mask=in_n[:, None] & (o < O)[None, :], other=0.0)
                weight = tl.load(weight_ptr + o[:, None] * C + c[None, :], mask=(o < O)[:, None] & in_c[None, :], other=0.0)
                d = tl.dot(doffset.to(weight.dtype), weight, d, input_precision="ieee")
            d *= tl.load(norm_weight_ptr + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
            mask = in_n[:, None] & in_c[None, :]
            x = tl.load(x_ptr + row + c[None, :], mask=mask, other=0.0).to(tl.float32)
            xhat = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
            if sweep == 0:
                sum_d += tl.sum(d, 1)
                sum_dx += tl.sum(d * xhat, 1)
            else:
                dx = (d - (sum_d / C)[:, None] - xhat * (sum_dx / C)[:, None]) * rstd[:, None]
                tl.store(dx_ptr + row + c[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)


@jit
def _offset_fc_dw_kernel(
    doffset_ptr,  # [N, O]
    x_ptr,  # [N, C]
    mean_ptr,  # [N] float32
    rstd_ptr,  # [N] float32
    dscaled_weight_ptr,  # [SPLITS, O, C] float32: doffset.T @ xhat
    dbias_ptr,  # [SPLITS, O] float32
    N,
    CHUNK: tl.constexpr,  # tokens per split, a multiple of BLOCK_N
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    split = tl.program_id(0)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    dscaled_weight = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    dbias = tl.zeros((BLOCK_O,), tl.float32)
    first = split.to(tl.int64) * CHUNK
    for i in range(0, CHUNK // BLOCK_N):
        n = first + i * BLOCK_N + tl.arange(0, BLOCK_N)
        in_n = n < N
        mean = tl.load(mean_ptr + n, mask=in_n, other=0.0)
        rstd = tl.load(rstd_ptr + n, mask=in_n, other=0.0)
        x = tl.load(x_ptr + n[:, None] * C + c[None, :], mask=in_n[:, None] & (c < C)[None, :], other=0.0)
        xhat = (x.to(tl.float32) - mean[:, None]) * rstd[:, None]  # zero past N, as rstd is
        doffset = tl.load(doffset_ptr + n[:, None] * O + o[None, :], mask=in_n[:, None] & (o < O)[None, :], other=0.0)
        dbias += tl.sum(doffset.to(tl.float32), 0)
        rounded = xhat.to(x.dtype)
        doffset = tl.trans(doffset.to(x.dtype))
        dscaled_weight = tl.dot(doffset, rounded, dscaled_weight, input_precision="ieee")
        if x.dtype != tl.float32:  # what rounding xhat to 16 bits lost: the norm's gradients are small differences of these sums
            dscaled_weight = tl.dot(doffset, (xhat - rounded.to(tl.float32)).to(x.dtype), dscaled_weight)
    at = dscaled_weight_ptr + (split.to(tl.int64) * O + o)[:, None] * C + c[None, :]
    tl.store(at, dscaled_weight, mask=(o < O)[:, None] & (c < C)[None, :])
    if tl.program_id(2) == 0:
        tl.store(dbias_ptr + split * O + o, dbias, mask=o < O)


CHUNK = 2048  # tokens that one program of the weight gradients adds up

KERNELS = {"offset_fc": ("offset_fc_fwd",), "offset_fc_backward": ("offset_fc_dx", "offset_fc_dw")}


@dataclass(frozen=True)
class Tile:
    tokens: int
    outputs: int  # at most
    channels: int  # at most
    num_warps: int
    num_stages: int | None = None  # the compiler's default

    def config(self, C: int, O: int) -> dict[str, int]:  # noqa: E741
        blocks = dict(BLOCK_N=self.tokens, BLOCK_O=_block(O, self.outputs), BLOCK_C=_block(C, self.channels), num_warps=self.num_warps)
        return blocks if self.num_stages is None else blocks | dict(num_stages=self.num_stages)


def _block(size: int, most: int) -> int:
    return max(16, min(triton.next_power_of_2(size), most))


def _row_tiles(tokens: int) -> tuple[Tile, ...]:
    """Configurations of forward and dx. The first is the default: larger blocks by 4 warps spill in float32, on every target."""
    return (
        Tile(tokens, 64, 64, 4),
        Tile(tokens, 64, 64, 4, 2),
        Tile(tokens, 64, 64, 4, 4),
        Tile(tokens, 64, 32, 4),
        Tile(tokens, 64, 64, 8),
        Tile(2 * tokens, 64, 64, 8),
        Tile(tokens // 2, 64, 64, 4),
        Tile(tokens, 128, 64, 8),
    )


# Of the dw kernel. The first is the default: larger blocks by 4 warps spill everywhere but on Hopper.
WEIGHT_TILES = (
    Tile(32, 64, 64, 4),
    Tile(32, 64, 64, 4, 2),
    Tile(32, 64, 64, 4, 4),
    Tile(32, 64, 64, 8),
    Tile(32, 128, 64, 8),
    Tile(32, 64, 128, 8),
    Tile(64, 32, 64, 4),
)


@tables.distinct
def candidates(kernel: str, x: Tensor, groups: int) -> Iterator[dict[str, int]]:
    """Yield configurations for ``groups`` = O."""
    row_tiles = _row_tiles(32 if x.dtype == torch.float32 else 64)
    for tile in WEIGHT_TILES if kernel == "offset_fc_dw" else row_tiles:
        yield tile.config(int(x.shape[-1]), groups)


@triton_op("offset_fc")
def _offset_fc(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if not runs_kernels(x):
        return plain.offset_fc_forward(x, norm_weight, norm_bias, weight, bias, eps)
    x, weight = x.contiguous(), weight.contiguous()
    norm_weight, norm_bias, bias = norm_weight.contiguous(), norm_bias.contiguous(), bias.contiguous()
    *shape, C = x.shape
    N, C, O = math.prod(shape), int(C), int(weight.shape[0])  # noqa: E741
    offset = x.new_empty(*shape, O)
    mean, rstd = x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)
    config = tables.config("offset_fc_fwd", x, O, candidates)
    grid = (triton.cdiv(N, config["BLOCK_N"]), triton.cdiv(O, config["BLOCK_O"]))
    with torch.cuda.device_of(x):
        wrap_triton(_offset_fc_fwd_kernel)[grid](x, norm_weight, norm_bias, weight, bias, offset, mean, rstd, N, C, O, eps, **config)
    return offset, mean, rstd


@triton_op("offset_fc_backward")
def _offset_fc_backward(
    doffset: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not runs_kernels(x):
        return plain.offset_fc_backward(doffset, x, mean, rstd, norm_weight, norm_bias, weight)
    doffset, x, weight, norm_weight = doffset.contiguous(), x.contiguous(), weight.contiguous(), norm_weight.contiguous()
    *shape, C = x.shape
    N, C, O = math.prod(shape), int(C), int(weight.shape[0])  # noqa: E741
    dx = torch.empty_like(x)
    dx_config, dw_config = (tables.config(kernel, x, O, candidates) for kernel in KERNELS["offset_fc_backward"])
    splits = triton.cdiv(N, CHUNK) + 1  # one idle split avoids 0/1 specialization of dynamic shapes
    dscaled_weight = x.new_empty(splits, O, C, dtype=torch.float32)
    dbias = x.new_empty(splits, O, dtype=torch.float32)
    grid = (splits, triton.cdiv(O, dw_config["BLOCK_O"]), triton.cdiv(C, dw_config["BLOCK_C"]))
    with torch.cuda.device_of(x):
        wrap_triton(_offset_fc_dx_kernel)[(triton.cdiv(N, dx_config["BLOCK_N"]),)](
            doffset, x, mean, rstd, norm_weight, weight, dx, N, C, O, **dx_config
        )
        wrap_triton(_offset_fc_dw_kernel)[grid](doffset, x, mean, rstd, dscaled_weight, dbias, N, CHUNK, C, O, **dw_config)
    return dx, *plain.offset_fc_parameter_grads(dscaled_weight.sum(0), dbias.sum(0), norm_weight, norm_bias, weight)


def _setup_context(ctx, inputs, output):
    x, norm_weight, norm_bias, weight, _, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, weight)


def _backward(ctx, doffset, dmean, drstd):
    return *_offset_fc_backward(doffset, *ctx.saved_tensors), None


_offset_fc.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivative(_offset_fc_backward)


register_flop_formula(OPS.offset_fc)(
    flops.Formula(
        macs=lambda x, norm_weight, norm_bias, weight, *_, **__: flops.offset_fc_macs(x, weight[0]),
        normalized=lambda x, *_, **__: math.prod(x),
    )
)
register_flop_formula(OPS.offset_fc_backward)(flops.Formula(macs=lambda doffset, x, *_, **__: 2 * flops.offset_fc_macs(x, doffset[-1])))


def offset_fc(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Predict offsets: ``LayerNorm(x) @ weight.T + bias`` (paper, section 3.2, "ATM along the horizontal dimension").

    Args:
        x: Tokens ``[B, H, W, C]``, any strides; of sequences ``[B, W, C]``, of videos and volumes ``[B, T, H, W, C]``.
        norm_weight, norm_bias: The LayerNorm's ``[C]``.
        weight, bias: The linear layer's ``[O, C]`` and ``[O]``, in x's dtype. ``O = 2G`` in a mixer: G horizontal, then G vertical
            (G for each axis, in the order w, h, t).
        eps: Added to the variance.

    Returns:
        Offsets ``[B, *axes, O]`` in x's dtype (autocast's, where it is on); the norm and the sums are computed in float32 (float64 for
        float64 input).

    Raises:
        ValueError: a shape that does not fit, or tensors on different devices.
        TypeError: what is no dense tensor of floating point, or weight and bias of another dtype than x.
    """
    op = "offset_fc"
    checks.tensors(op, x=x, norm_weight=norm_weight, norm_bias=norm_bias, weight=weight, bias=bias)
    checks.tokens(op, "x", x)
    C = x.shape[-1]
    for name, t in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        checks.shape(op, name, t, (C,), f"[C] of x {checks.show(x)}")
    if weight.ndim != 2 or weight.shape[1] != C:
        raise ValueError(f"{op}: weight must be [O, C] with C of x {checks.show(x)}, got {checks.show(weight)}")
    checks.shape(op, "bias", bias, (weight.shape[0],), f"[O] of weight {checks.show(weight)}")
    x, weight, bias = checks.to_autocast(x, weight, bias)
    if not x.dtype == weight.dtype == bias.dtype:
        raise TypeError(f"{op}: weight and bias must have x's dtype {x.dtype}, got {weight.dtype} and {bias.dtype}")
    return _offset_fc(x, norm_weight, norm_bias, weight, bias, eps)[0]
