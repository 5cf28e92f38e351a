"""branch_fusion: weigh the three branches of a mixer by a softmax over them, per sample and channel.

    alpha = softmax over k of logits[b, k, c];   y = alpha[0] * w + alpha[1] * h + alpha[2] * c

Programs own BLOCK_N tokens of one sample by BLOCK_C channels. The backward reduces over the tokens of a sample: each program writes its own
partial sum, and a second, small sum adds them, so the result never depends on the order in which programs run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.library import wrap_triton

from .. import flops, plain, reference
from .._triton import OPS, jit, refuse_second_derivative, register_flop_formula, runs_kernels, tl, triton, triton_op
from ..tuning import tables
from . import checks


@jit
def _alpha(w, h, c):
    top = tl.maximum(tl.maximum(w, h), c)
    w, h, c = tl.exp(w - top), tl.exp(h - top), tl.exp(c - top)
    total = w + h + c
    return w / total, h / total, c / total


@jit
def _branch_fusion_fwd_kernel(
    w_ptr,  # [B, T, C], T = H * W tokens of a sample
    h_ptr,  # [B, T, C]
    c_ptr,  # [B, T, C]
    logits_ptr,  # [B, 3, C]
    y_ptr,  # [B, T, C]
    T,
    TILES,  # programs per sample
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample = tl.program_id(0) // TILES
    n = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = logits_ptr + sample * (3 * C) + channel
    logit_w = tl.load(at, mask=channel < C, other=0.0).to(tl.float32)
    logit_h = tl.load(at + C, mask=channel < C, other=0.0).to(tl.float32)
    logit_c = tl.load(at + 2 * C, mask=channel < C, other=0.0).to(tl.float32)
    alpha_w, alpha_h, alpha_c = _alpha(logit_w, logit_h, logit_c)

    mask = (n < T)[:, None] & (channel < C)[None, :]
    index = (sample.to(tl.int64) * T + n)[:, None] * C + channel[None, :]
    w = tl.load(w_ptr + index, mask=mask, other=0.0).to(tl.float32)
    h = tl.load(h_ptr + index, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + index, mask=mask, other=0.0).to(tl.float32)
    y = alpha_w[None, :] * w + alpha_h[None, :] * h + alpha_c[None, :] * c
    tl.store(y_ptr + index, y.to(y_ptr.dtype.element_ty), mask=mask)


@jit
def _branch_fusion_bwd_kernel(
    dy_ptr,  # [B, T, C]
    w_ptr,  # [B, T, C]
    h_ptr,  # [B, T, C]
    c_ptr,  # [B, T, C]
    logits_ptr,  # [B, 3, C]
    dw_ptr,  # [B, T, C]
    dh_ptr,  # [B, T, C]
    dc_ptr,  # [B, T, C]
    partial_ptr,  # [B, TILES, 3, C] float32: sums of dy * branch over the tokens of one program
    T,
    TILES,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample = tl.program_id(0) // TILES
    n = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = logits_ptr + sample * (3 * C) + channel
    logit_w = tl.load(at, mask=channel < C, other=0.0).to(tl.float32)
    logit_h = tl.load(at + C, mask=channel < C, other=0.0).to(tl.float32)
    logit_c = tl.load(at + 2 * C, mask=channel < C, other=0.0).to(tl.float32)
    alpha_w, alpha_h, alpha_c = _alpha(logit_w, logit_h, logit_c)

    mask = (n < T)[:, None] & (channel < C)[None, :]
    index = (sample.to(tl.int64) * T + n)[:, None] * C + channel[None, :]
    dy = tl.load(dy_ptr + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(dw_ptr + index, (alpha_w[None, :] * dy).to(dw_ptr.dtype.element_ty), mask=mask)
    tl.store(dh_ptr + index, (alpha_h[None, :] * dy).to(dh_ptr.dtype.element_ty), mask=mask)
    tl.store(dc_ptr + index, (alpha_c[None, :] * dy).to(dc_ptr.dtype.element_ty), mask=mask)
    w = tl.load(w_ptr + index, mask=mask, other=0.0).to(tl.float32)
    h = tl.load(h_ptr + index, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + index, mask=mask, other=0.0).to(tl.float32)
    partial = partial_ptr + tl.program_id(0).to(tl.int64) * (3 * C) + channel
    tl.store(partial, tl.sum(dy * w, 0), mask=channel < C)
    tl.store(partial + C, tl.sum(dy * h, 0), mask=channel < C)
    tl.store(partial + 2 * C, tl.sum(dy * c, 0), mask=channel < C)


KERNELS = {"branch_fusion": ("branch_fusion_fwd",), "branch_fusion_backward": ("branch_fusion_bwd",)}


@dataclass(frozen=True)
class Tile:
    elements: int  # of a program forward; twice as many backward, where half of what is loaded is not kept
    channels: int  # at most
    num_warps: int


# The first is the default: 16 values of each branch a thread forward. None of them has been timed on a GPU.
TILES = (Tile(2048, 128, 4), Tile(1024, 128, 4), Tile(2048, 128, 8), Tile(4096, 128, 8), Tile(512, 128, 4), Tile(2048, 64, 4))


@tables.distinct
def candidates(kernel: str, x: Tensor, groups: int) -> Iterator[dict[str, int]]:
    """Yield configurations, none of which depends on H or W, so that dynamic shapes need one compilation."""
    for tile in TILES:
        block_c = min(triton.next_power_of_2(int(x.shape[3])), tile.channels)
        elements = tile.elements if kernel == "branch_fusion_fwd" else 2 * tile.elements
        yield dict(BLOCK_N=elements // block_c, BLOCK_C=block_c, num_warps=tile.num_warps)


@triton_op("branch_fusion")
def _branch_fusion(w: Tensor, h: Tensor, c: Tensor, logits: Tensor) -> Tensor:
    if not runs_kernels(w):
        return reference.branch_fusion(w, h, c, logits)
    w, h, c, logits = w.contiguous(), h.contiguous(), c.contiguous(), logits.contiguous()
    B, H, W = w.shape[:3]
    C = int(w.shape[3])
    y = torch.empty_like(w)
    config = tables.config("branch_fusion_fwd", w, C, candidates)
    tiles = triton.cdiv(H * W, config["BLOCK_N"])
    grid = (B * tiles, triton.cdiv(C, config["BLOCK_C"]))
    with torch.cuda.device_of(w):
        wrap_triton(_branch_fusion_fwd_kernel)[grid](w, h, c, logits, y, H * W, tiles, C, **config)
    return y


@triton_op("branch_fusion_backward")
def _branch_fusion_backward(dy: Tensor, w: Tensor, h: Tensor, c: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not runs_kernels(w):
        return plain.branch_fusion_backward(dy, w, h, c, logits)
    dy, w, h, c, logits = dy.contiguous(), w.contiguous(), h.contiguous(), c.contiguous(), logits.contiguous()
    B, H, W = w.shape[:3]
    C = int(w.shape[3])
    dw, dh, dc = torch.empty_like(w), torch.empty_like(h), torch.empty_like(c)
    config = tables.config("branch_fusion_bwd", w, C, candidates)
    tiles = triton.cdiv(H * W, config["BLOCK_N"]) + 1  # one idle tile avoids 0/1 specialization of dynamic shapes
    partial = torch.empty(B, tiles, 3, C, dtype=torch.float32, device=w.device)
    grid = (B * tiles, triton.cdiv(C, config["BLOCK_C"]))
    with torch.cuda.device_of(w):
        wrap_triton(_branch_fusion_bwd_kernel)[grid](dy, w, h, c, logits, dw, dh, dc, partial, H * W, tiles, C, **config)
    return dw, dh, dc, plain.fusion_logits_backward(partial.sum(1), logits)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):
    return _branch_fusion_backward(dy, *ctx.saved_tensors)


_branch_fusion.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivative(_branch_fusion_backward)
register_flop_formula(OPS.branch_fusion)(flops.Formula(per_value=lambda w, *_, **__: flops.FUSION[0] * math.prod(w)))
register_flop_formula(OPS.branch_fusion_backward)(flops.Formula(per_value=lambda dy, *_, **__: flops.FUSION[1] * math.prod(dy)))


def branch_fusion(w: Tensor, h: Tensor, c: Tensor, logits: Tensor) -> Tensor:
    """Fuse the three branches with softmax weights, ``y = a_w * w + a_h * h + a_c * c`` (paper, section 3.2, eq. 3-4).

    Args:
        w, h, c: The horizontal, vertical and identity branches ``[B, H, W, C]``, any strides, one dtype.
        logits: ``[B, 3, C]``; the weights are its softmax over the three, in order w, h, c. Its dtype may differ; autocast leaves it.

    Returns:
        ``[B, H, W, C]`` in the branches' dtype; the softmax and the sums are computed in float32 (float64 for float64 input).

    Raises:
        ValueError: a shape that does not fit, or tensors on different devices.
        TypeError: what is no dense tensor of floating point, or branches of different dtypes.
    """
    op = "branch_fusion"
    checks.tensors(op, w=w, h=h, c=c, logits=logits)
    checks.tokens(op, "w", w)
    B, H, W, C = w.shape
    for name, branch in (("h", h), ("c", c)):
        checks.shape(op, name, branch, (B, H, W, C), "the shape of w, [B, H, W, C]")
    checks.shape(op, "logits", logits, (B, 3, C), "[B, 3, C]")
    w, h, c = checks.to_autocast(w, h, c)
    if not w.dtype == h.dtype == c.dtype:
        raise TypeError(f"{op}: w, h and c must have one dtype, got {w.dtype}, {h.dtype} and {c.dtype}")
    return _branch_fusion(w, h, c, logits)
