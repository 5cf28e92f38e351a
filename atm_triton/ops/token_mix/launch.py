"""Launches of token_mix's kernels: launch configurations and grids, and what is left to a sum at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import wrap_triton

from ..._triton import token_stride, triton
from ...algebra import Weights
from ...reference import bottleneck
from ...tuning import tables
from .. import checks
from ..branch_fusion import candidates as fusion_candidates
from ..slots import slots
from . import strategy
from .alpha import _token_mix_alpha_kernel, _token_mix_pooled_kernel
from .fold import _token_mix_fold_kernel
from .fuse import _token_mix_fuse_backward_kernel, _token_mix_fuse_kernel
from .gather import _token_mix_gather_kernel
from .gather_lines import _token_mix_gather_lines_kernel
from .scatter import _token_mix_doffset_kernel, _token_mix_dx_kernel


@tables.distinct
def candidates(kernel: str, x: Tensor, groups: int) -> Iterator[dict[str, int]]:
    """Launch configurations of ``kernel`` worth trying for tokens x with ``groups`` offset channels per axis; the first always works."""
    if kernel in ("token_mix", "token_mix_backward"):
        yield from strategy.candidates(kernel, x, groups)
        return
    C, longest = int(x.shape[-1]), max(tables._hint(size) for size in x.shape[1:-1])
    half = x.element_size() == 2
    block_s = triton.next_power_of_2(C // groups)

    def tile(tokens: int, channels: int, **others: int) -> dict[str, int]:
        """Blocks of a tile: fewer tokens where more channels than that share an offset."""
        return dict(BLOCK_N=max(16, tokens // max(1, block_s // channels)), BLOCK_G=max(1, channels // block_s), BLOCK_S=block_s) | others

    if kernel == "token_mix_gather":
        warps = 8 if block_s < 8 else 4  # so that a thread has all channels of an offset, and loads them at once
        yield tile(16, 64, TOKENS=128, num_warps=warps)
        yield tile(16, 64, TOKENS=128, num_warps=12 - warps)
        for tokens, together in ((16, 256), (32, 128)):
            yield tile(tokens, 64, TOKENS=together, num_warps=8)
    elif kernel == "token_mix_gather_lines":
        channels = _word(x, groups)
        words = C // channels
        block_q = min(triton.next_power_of_2(max(longest, 1) + 1), strategy.LONGEST_LINE)
        # Tiles of 128 bytes for a token, which touch every bank once; at last, with two channels to a word, of 64 for smaller programs.
        for block_e, warps, together in ((16, 4, 14), (16, 4, 7), (16, 8, 7)) if channels == 4 else ((32, 8, 14), (32, 8, 7), (16, 4, 14)):
            block_e = min(triton.next_power_of_2(words), block_e)
            block_l = max(1, (4 if channels == 4 else 8) * 32 * warps // (block_q * block_e))
            rows = max(1, min(block_l * block_q, 32 * warps // block_e))
            blocks = dict(BLOCK_L=block_l, BLOCK_Q=block_q, BLOCK_E=block_e, ROWS=rows)
            yield dict(CHANNELS=channels, TOGETHER=together) | blocks | dict(num_warps=warps)
    elif kernel in ("token_mix_pooled", "token_mix_alpha"):
        hidden = {} if kernel == "token_mix_pooled" else dict(BLOCK_F=max(16, triton.next_power_of_2(bottleneck(C))))
        for channels in (32, 16) if half else (16,):
            yield dict(BLOCK_B=16, BLOCK_C=channels, num_warps=4 if half else 8) | hidden
    elif kernel == "token_mix_fold":
        if half:
            for tokens, outputs, warps in ((64, 64, 4), (128, 64, 8), (128, 128, 8), (64, 128, 4)):
                yield dict(BLOCK_N=tokens, BLOCK_O=_block(C, outputs), BLOCK_K=_block(C, 64), num_warps=warps, num_stages=3)
        else:
            for tokens, warps in ((32, 4), (64, 8)):
                yield dict(BLOCK_N=tokens, BLOCK_O=_block(C, 64), BLOCK_K=_block(C, 32), num_warps=warps, num_stages=1)
    elif kernel in ("token_mix_fuse", "token_mix_fuse_backward"):
        yield from fusion_candidates("branch_fusion_fwd", x, groups)
    elif kernel == "token_mix_doffset":
        for tokens, warps in ((32, 8), (32, 4), (16, 4), (64, 8)):
            yield tile(tokens, 64, num_warps=warps)
    elif kernel == "token_mix_dx":
        block_q, block_s = min(triton.next_power_of_2(max(longest, 2)), 16), min(block_s, 8)
        for elements, warps in ((1024, 1), (2048, 2), (2048, 1), (4096, 4)):
            block_g = min(triton.next_power_of_2(groups), max(1, elements // (block_q * block_s)))
            yield dict(BLOCK_Q=block_q, BLOCK_G=block_g, BLOCK_S=block_s, num_warps=warps)


def _word(x: Tensor, groups: int) -> int:
    """Channels that are gathered together out of shared memory: of 16 bits, sharing an offset."""
    share = int(x.shape[-1]) // groups
    return 1 if x.element_size() != 2 else 4 if share % 4 == 0 else 2 if share % 2 == 0 else 1


def _block(C: int, most: int) -> int:
    return max(16, min(triton.next_power_of_2(C), most))


def _config(kernel: str, x: Tensor, groups: int) -> dict[str, int]:
    return tables.config(kernel, x, groups, candidates)


class _Sizes(NamedTuple):
    """Sizes of tokens and their offsets. A sample has T = D * H * W tokens: frames, rows, columns; 1 of what it has no axis for."""

    B: int
    D: int
    H: int
    W: int
    axes: int
    C: int
    G: int  # offset channels per axis
    S: int  # channels of each

    @property
    def T(self) -> int:
        return self.D * self.H * self.W

    def maps(self, axis: int) -> tuple[int, int, int, int]:
        """How many maps there are of which the axis is the rows (0) or the columns, their height and width, and how many a sample has."""
        return (self.B, self.D, self.H * self.W, 1) if axis == 2 else (self.B * self.D, self.H, self.W, self.D)


def _sizes(x: Tensor, offset: Tensor) -> _Sizes:
    B, *axes, C = x.shape
    C, G = int(C), int(offset.shape[-1]) // len(axes)
    D, H, W = [1] * (3 - len(axes)) + axes
    return _Sizes(B, D, H, W, len(axes), C, G, C // G)


def _check_size(x: Tensor, channels: int) -> None:
    """Refuse samples that are too large for the kernels, which count in 32 bits inside one."""
    if math.prod(x.shape[1:-1]) * channels >= 2**31:
        raise ValueError(
            f"token_mix: a sample must have fewer than 2^31 values, got x {checks.show(x)} with {channels} channels or offsets"
        )


def has(choice: str, kernel: str, x: Tensor, groups: int) -> bool:
    """Tell whether the strategy of ``kernel``, one of strategy.py's, has that choice."""
    return bool(_config(kernel, x, groups)[choice])


def gather(x: Tensor, offset: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """The tokens gathered along each axis, ``[axes, B, *axes, C]``, and the means of those and of the tokens themselves, ``[B, K, C]``.

    ``shared``: out of shared memory, a line at a time.
    """
    n = _sizes(x, offset)
    offset, stride = token_stride(offset)
    _check_size(x, max(n.C, stride, n.axes * n.G))
    if shared:
        return _gather_lines(x, offset, n, stride)
    config = _config("token_mix_gather", x, n.G)
    tiles = triton.cdiv(n.T, config["TOKENS"]) + 1  # one idle tile avoids 0/1 specialization of dynamic shapes
    gathered = x.new_empty(n.axes, *x.shape)
    partial = torch.empty(n.B, tiles, n.axes + 1, n.C, dtype=torch.float32, device=x.device)
    grid = (n.B * tiles, triton.cdiv(n.G, config["BLOCK_G"]))
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_gather_kernel)[grid](
            x, offset, gathered, partial, n.B, n.T, n.D, max(n.H, 1), max(n.W, 1), tiles, n.G, n.S, stride, n.axes, **config
        )
    return gathered, partial.sum(1) / max(n.T, 1)


def _gather_lines(x: Tensor, offset: Tensor, n: _Sizes, stride: int) -> tuple[Tensor, Tensor]:
    gathered = x.new_empty(n.axes, *x.shape)
    sums = _sums_by_lines((0, 1)[: n.axes], x, offset, gathered, n, stride)
    if n.axes == 3:
        sums = torch.cat([sums[:, :2], _sums_by_lines((2,), x, offset, gathered, n, stride), sums[:, 2:]], 1)
    return gathered, sums / max(n.T, 1)


def _sums_by_lines(axes: Sequence[int], x: Tensor, offset: Tensor, gathered: Tensor, n: _Sizes, stride: int) -> Tensor:
    """Gather along axes of the same maps; the sums over the tokens of each, and with the first of their own, ``[B, axes (+ 1), C]``."""
    config = _config("token_mix_gather_lines", x, n.G)
    together, piece = config["BLOCK_L"], config["BLOCK_Q"] - 1
    maps, H, W, of_sample = n.maps(axes[0])
    sizes = [(H, W) if axis == 0 else (W, H) for axis in axes]
    pieces = [triton.cdiv(lines, together) * triton.cdiv(length, piece) for lines, length in sizes]
    tiles = triton.cdiv(reduce(torch.sym_max, pieces), config["TOGETHER"]) + 1  # one idle tile, as above
    planes = len(axes) + (axes[0] == 0)
    partial = torch.empty(maps, tiles, planes, n.C, dtype=torch.float32, device=x.device)
    grid = (maps * tiles, triton.cdiv(n.C // config["CHANNELS"], config["BLOCK_E"]))
    parts = offset.chunk(n.axes, -1)
    with torch.cuda.device_of(x):
        for plane, axis in enumerate(axes):
            wrap_triton(_token_mix_gather_lines_kernel)[grid](
                x, parts[axis], gathered, partial, maps, H, W, tiles, n.G, n.S, stride, axis, plane, planes, **config
            )
    return partial.view(n.B, of_sample * tiles, planes, n.C).sum(1)


def alpha(means: Tensor, branches: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The mean of the branches' sum ``[B, O]``, and the weights of the branches ``[B, K, O]`` that follow from it."""
    B, K, C = means.shape
    K, C, O = int(K), int(C), int(branches.shape[1])  # noqa: E741
    tokens = branches.new_empty(B, 1, 1, O)  # what names the configuration: no image size, the dtype of the weights
    pooled, alpha = means.new_empty(B, O), means.new_empty(B, K, O)
    bottleneck = weights.fc1_weight, weights.fc1_bias, weights.fc2_weight, weights.fc2_bias
    config = _config("token_mix_pooled", tokens, O)
    grid = (triton.cdiv(B, config["BLOCK_B"]), triton.cdiv(O, config["BLOCK_C"]))
    with torch.cuda.device_of(means):
        wrap_triton(_token_mix_pooled_kernel)[grid](means, branches, *slots(weights.biases), pooled, B, C, O, K, **config)
        config = _config("token_mix_alpha", tokens, O)
        grid = (triton.cdiv(B, config["BLOCK_B"]), triton.cdiv(O, config["BLOCK_C"]))
        wrap_triton(_token_mix_alpha_kernel)[grid](pooled, *bottleneck, alpha, B, O, int(weights.fc1_weight.shape[0]), K, **config)
    return pooled, alpha


def fold(gathered: Tensor, x: Tensor, groups: int, matrices: Tensor, bias: Tensor) -> Tensor:
    """The projected tokens ``[B, *axes, O]`` by the matrices ``[K, B, O, C]`` of each sample."""
    B, *axes, C = x.shape
    K, C, O, tokens = int(matrices.shape[0]), int(C), int(matrices.shape[2]), math.prod(axes)  # noqa: E741
    _check_size(x, O)
    config = _config("token_mix_fold", x, groups)
    tiles = triton.cdiv(tokens, config["BLOCK_N"])
    y = x.new_empty(B, *axes, O)
    grid = (B * tiles * triton.cdiv(O, config["BLOCK_O"]),)
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_fold_kernel)[grid](gathered, x, matrices, bias, y, B, tokens, tiles, C, O, K, **config)
    return y


def fuse(branches: list[Tensor], alpha: Tensor, weights: Weights) -> Tensor:
    """The weighted sum of the branches ``[B, *axes, O]``, which come without their biases."""
    B, *axes, C = branches[0].shape
    C, tokens = int(C), math.prod(axes)
    y = torch.empty_like(branches[0])
    config = _config("token_mix_fuse", y, C)
    tiles = triton.cdiv(tokens, config["BLOCK_N"])
    grid = (B * tiles, triton.cdiv(C, config["BLOCK_C"]))
    arguments = *slots(branches[:-1]), branches[-1], alpha, *slots(weights.biases), y
    with torch.cuda.device_of(y):
        wrap_triton(_token_mix_fuse_kernel)[grid](*arguments, tokens, tiles, C, len(branches), **config)
    return y


def fuse_backward(dy: Tensor, branches: list[Tensor], alpha: Tensor, weights: Weights) -> tuple[list[Tensor], Tensor, Tensor]:
    """The gradients of the branches, the sum again, and the sums over the tokens of dy times each branch, and of dy, ``[B, K + 1, C]``."""
    B, *axes, C = dy.shape
    C, tokens = int(C), math.prod(axes)
    dbranches, y = [torch.empty_like(dy) for _ in branches], torch.empty_like(dy)
    config = _config("token_mix_fuse_backward", dy, C)
    tiles = triton.cdiv(tokens, config["BLOCK_N"]) + 1  # one idle tile, as in gather
    partial = torch.empty(B, tiles, len(branches) + 1, C, dtype=torch.float32, device=dy.device)
    grid = (B * tiles, triton.cdiv(C, config["BLOCK_C"]))
    given = dy, *slots(branches[:-1]), branches[-1], alpha, *slots(weights.biases)
    results = *slots(dbranches[:-1]), dbranches[-1], y, partial
    with torch.cuda.device_of(dy):
        wrap_triton(_token_mix_fuse_backward_kernel)[grid](*given, *results, tokens, tiles, C, len(branches), **config)
    return dbranches, y, partial.sum(1)


def scatter(dgathered: list[Tensor], x: Tensor, offset: Tensor, dmean: Tensor, *, deterministic: bool) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the offsets.

    ``dgathered``: of what the branches take in, without ``dmean [B, K, C]``, which every token gets through the means.
    """
    n = _sizes(x, offset)
    offset, stride = token_stride(offset)
    lines = deterministic or has("LINES", "token_mix_backward", x, n.G)
    config = _config("token_mix_doffset", x, n.G)
    tiles = triton.cdiv(n.T, config["BLOCK_N"])
    grid = (n.B * tiles * triton.cdiv(n.G, config["BLOCK_G"]),)
    doffset = torch.empty_like(offset, memory_format=torch.contiguous_format)
    *along, own = dgathered
    # By lines, this kernel writes no dx.
    dx = x if lines else own + dmean[:, -1].view(n.B, *[1] * n.axes, n.C)
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_doffset_kernel)[grid](
            *slots(along), x, offset, dmean, doffset, dx, n.T, n.D, n.H, n.W, tiles, n.G, n.S, stride, n.axes, not lines, **config
        )
        if lines:
            config = _config("token_mix_dx", x, n.G)
            blocks = triton.cdiv(n.G, config["BLOCK_G"]) * triton.cdiv(n.S, config["BLOCK_S"])
            dx = own
            for axis, (d, part) in enumerate(zip(along, offset.chunk(n.axes, -1), strict=True)):
                maps, H, W, of_sample = n.maps(axis)
                count, length = (H, W) if axis == 0 else (W, H)
                begin, dx = dx, torch.empty_like(x)
                wrap_triton(_token_mix_dx_kernel)[(maps * count, triton.cdiv(length, config["BLOCK_Q"]), blocks)](
                    d, begin, part, dmean, dx, of_sample, H, W, n.G, n.S, stride, n.axes, axis, **config
                )
    return dx.to(x.dtype), doffset
