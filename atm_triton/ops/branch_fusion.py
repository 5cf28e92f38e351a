"""branch_fusion: weigh the branches of a mixer by a softmax over them, per sample and channel.

    alpha = softmax over k of logits[b, k, c];   y = the sum over k of alpha[k] * branch k, in the order w, h, t, c

Programs own BLOCK_N tokens of one sample by BLOCK_C channels. The backward reduces over the tokens of a sample: each program writes its own
partial sum, and a second, small sum adds them, so the result never depends on the order in which programs run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from .. import flops, plain, reference
from .._triton import OPS, jit, refuse_second_derivative, register_flop_formula, runs_kernels, tl, triton, triton_op
from ..axes import axes_of
from ..tuning import tables
from . import checks
from .slots import slots


@jit
def _sum(parts):
    total = parts[0]
    for k in tl.static_range(1, len(parts)):
        total += parts[k]
    return total


@jit
def _softmax(logits):
    """Softmax over the tensors of a tuple."""
    top = logits[0]
    for k in tl.static_range(1, len(logits)):
        top = tl.maximum(top, logits[k])
    shares = ()
    for k in tl.static_range(len(logits)):
        shares = shares + (tl.exp(logits[k] - top),)  # type: ignore
    total = _sum(shares)
    alphas = ()
    for k in tl.static_range(len(logits)):
        alphas = alphas + (shares[k] / total,)  # type: ignore
    return alphas


@jit
def _alphas(logits_ptr, channel, C: tl.constexpr, BRANCHES: tl.constexpr):
    logits = ()
    for k in tl.static_range(BRANCHES):
        logits = logits + (tl.load(logits_ptr + k * C + channel, mask=channel < C, other=0.0).to(tl.float32),)  # type: ignore
    return _softmax(logits)


@jit
def _branch_fusion_fwd_kernel(
    w_ptr,  # [B, T, C], T tokens of a sample
    h_ptr,  # [B, T, C], of three branches or four
    t_ptr,  # [B, T, C], of four
    c_ptr,  # [B, T, C]
    logits_ptr,  # [B, BRANCHES, C]
    y_ptr,  # [B, T, C]
    T,
    TILES,  # programs per sample
    C: tl.constexpr,
    BRANCHES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample = tl.program_id(0) // TILES
    n = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    alphas = _alphas(logits_ptr + sample * (BRANCHES * C), channel, C, BRANCHES)

    mask = (n < T)[:, None] & (channel < C)[None, :]
    index = (sample.to(tl.int64) * T + n)[:, None] * C + channel[None, :]
    shares = ()
    for k in tl.static_range(BRANCHES):
        branch_ptr = c_ptr if k == BRANCHES - 1 else w_ptr if k == 0 else h_ptr if k == 1 else t_ptr
        shares = shares + (alphas[k][None, :] * tl.load(branch_ptr + index, mask=mask, other=0.0).to(tl.float32),)  # type: ignore
    tl.store(y_ptr + index, _sum(shares).to(y_ptr.dtype.element_ty), mask=mask)


@jit
def _branch_fusion_bwd_kernel(
    dy_ptr,  # [B, T, C]
    w_ptr,  # [B, T, C]
    h_ptr,  # [B, T, C], of three branches or four
    t_ptr,  # [B, T, C], of four
    c_ptr,  # [B, T, C]
    logits_ptr,  # [B, BRANCHES, C]
    dw_ptr,  # [B, T, C]
    dh_ptr,  # [B, T, C], of three branches or four
    dt_ptr,  # [B, T, C], of four
    dc_ptr,  # [B, T, C]
    partial_ptr,  # [B, TILES, BRANCHES, C] float32: sums of dy * branch over the tokens of one program
    T,
    TILES,
    C: tl.constexpr,
    BRANCHES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample = tl.program_id(0) // TILES
    n = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    alphas = _alphas(logits_ptr + sample * (BRANCHES * C), channel, C, BRANCHES)

    mask = (n < T)[:, None] & (channel < C)[None, :]
    index = (sample.to(tl.int64) * T + n)[:, None] * C + channel[None, :]
    dy = tl.load(dy_ptr + index, mask=mask, other=0.0).to(tl.float32)
    partial = partial_ptr + tl.program_id(0).to(tl.int64) * (BRANCHES * C) + channel
    for k in tl.static_range(BRANCHES):
        dbranch_ptr = dc_ptr if k == BRANCHES - 1 else dw_ptr if k == 0 else dh_ptr if k == 1 else dt_ptr
        tl.store(dbranch_ptr + index, (alphas[k][None, :] * dy).to(dbranch_ptr.dtype.element_ty), mask=mask)
    for k in tl.static_range(BRANCHES):
        branch_ptr = c_ptr if k == BRANCHES - 1 else w_ptr if k == 0 else h_ptr if k == 1 else t_ptr
        branch = tl.load(branch_ptr + index, mask=mask, other=0.0).to(tl.float32)
        tl.store(partial + k * C, tl.sum(dy * branch, 0), mask=channel < C)


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
    """Yield configurations, none of which depends on the axes, so that dynamic shapes need one compilation."""
    for tile in TILES:
        block_c = min(triton.next_power_of_2(int(x.shape[-1])), tile.channels)
        elements = tile.elements if kernel == "branch_fusion_fwd" else 2 * tile.elements
        yield dict(BLOCK_N=elements // block_c, BLOCK_C=block_c, num_warps=tile.num_warps)


@triton_op("branch_fusion")
def _branch_fusion(w: Tensor, h: Tensor | None, c: Tensor, logits: Tensor, t: Tensor | None) -> Tensor:
    if not runs_kernels(w):
        return reference.branch_fusion(w, h, c, logits, t)
    branches, logits = [branch.contiguous() for branch in (w, h, t, c) if branch is not None], logits.contiguous()
    B, *axes, C = w.shape
    tokens, C = math.prod(axes), int(C)
    y = torch.empty_like(branches[0])
    config = tables.config("branch_fusion_fwd", w, C, candidates)
    tiles = triton.cdiv(tokens, config["BLOCK_N"])
    grid = (B * tiles, triton.cdiv(C, config["BLOCK_C"]))
    with torch.cuda.device_of(w):
        wrap_triton(_branch_fusion_fwd_kernel)[grid](
            *slots(branches[:-1]), branches[-1], logits, y, tokens, tiles, C, len(branches), **config
        )
    return y


@triton_op("branch_fusion_backward")
def _branch_fusion_backward(
    dy: Tensor, w: Tensor, h: Tensor | None, c: Tensor, logits: Tensor, t: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    branches = [branch for branch in (w, h, t, c) if branch is not None]
    if runs_kernels(w):
        dbranches, dlogits = _kernel_gradients(dy.contiguous(), [branch.contiguous() for branch in branches], logits.contiguous())
    else:
        dbranches, dlogits = plain.branch_fusion_backward(dy, branches, logits)
    dw, dh, dt = slots(dbranches[:-1], lambda: dy.new_empty(0))
    return dw, dh, dbranches[-1], dlogits, dt


def _kernel_gradients(dy: Tensor, branches: list[Tensor], logits: Tensor) -> tuple[list[Tensor], Tensor]:
    B, *axes, C = dy.shape
    tokens, C = math.prod(axes), int(C)
    dbranches = [torch.empty_like(branch) for branch in branches]
    config = tables.config("branch_fusion_bwd", dy, C, candidates)
    tiles = triton.cdiv(tokens, config["BLOCK_N"]) + 1  # one idle tile avoids 0/1 specialization of dynamic shapes
    partial = torch.empty(B, tiles, len(branches), C, dtype=torch.float32, device=dy.device)
    grid = (B * tiles, triton.cdiv(C, config["BLOCK_C"]))
    arguments = dy, *slots(branches[:-1]), branches[-1], logits, *slots(dbranches[:-1]), dbranches[-1], partial
    with torch.cuda.device_of(dy):
        wrap_triton(_branch_fusion_bwd_kernel)[grid](*arguments, tokens, tiles, C, len(branches), **config)
    return dbranches, plain.fusion_logits_backward(partial.sum(1), logits)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):
    inputs = ctx.saved_tensors  # once: under checkpointing, each look computes them again
    gradients = _branch_fusion_backward(dy, *inputs)
    return tuple(None if t is None else gradient for t, gradient in zip(inputs, gradients, strict=True))


_branch_fusion.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivative(_branch_fusion_backward)
register_flop_formula(OPS.branch_fusion)(
    flops.Formula(per_value=lambda w, h, c, logits, *_, **__: flops.fusion(logits[1])[0] * math.prod(w)),
)
register_flop_formula(OPS.branch_fusion_backward)(
    flops.Formula(per_value=lambda dy, w, h, c, logits, *_, **__: flops.fusion(logits[1])[1] * math.prod(dy)),
)


def branch_fusion(w: Tensor, h: Tensor | None, c: Tensor, logits: Tensor, t: Tensor | None = None) -> Tensor:
    """Fuse the branches with softmax weights, ``y = a_w * w + a_h * h + a_c * c`` (paper, section 3.2, eq. 3-4).

    Args:
        w, h, c: The horizontal, vertical and identity branches ``[B, H, W, C]``, any strides, one dtype. Of sequences ``[B, W, C]``, h is
            None.
        logits: ``[B, K, C]`` of K branches, 3 of images; the weights are its softmax over them, in order w, h, t, c. Its dtype may differ;
            autocast leaves it.
        t: The branch along time of videos, or along the depth of volumes; all branches are then ``[B, T, H, W, C]``.

    Returns:
        A tensor as w, in the branches' dtype; the softmax and the sums are computed in float32 (float64 for float64 input).

    Raises:
        ValueError: a shape that does not fit, or tensors on different devices.
        TypeError: what is no dense tensor of floating point, or branches of different dtypes.
    """
    op = "branch_fusion"
    there: list[tuple[str, Any]] = [("w", w), ("h", h), ("t", t), ("c", c)]
    given = {name: branch for name, branch in there if name in "wc" or branch is not None}
    checks.tensors(op, **given, logits=logits)
    checks.tokens(op, "w", w)
    axes = axes_of(w)
    if "".join(given) != axes + "c":
        raise ValueError(
            f"{op}: tokens of {len(axes)} axes, w {checks.show(w)}, have the branches {', '.join(axes + 'c')}, got {', '.join(given)}"
        )
    for name, branch in given.items():
        checks.shape(op, name, branch, tuple(w.shape), "the shape of w")
    checks.shape(op, "logits", logits, (w.shape[0], len(given), w.shape[-1]), f"[B, {len(given)}, C]")
    cast = {name: checks.to_autocast(branch)[0] for name, branch in given.items()}
    if len({branch.dtype for branch in cast.values()}) > 1:
        raise TypeError(
            f"{op}: all branches must have one dtype, got " + ", ".join(f"{name} {branch.dtype}" for name, branch in cast.items())
        )
    return _branch_fusion(cast["w"], cast.get("h"), cast["c"], logits, cast.get("t"))
