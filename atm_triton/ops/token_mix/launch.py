"""Launches of token_mix's kernels: launch configurations and grids, and what is left to a sum at the end."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.library import wrap_triton

from ..._triton import token_stride, triton
from ...algebra import Weights
from ...reference import bottleneck
from ...tuning import tables
from .. import checks
from ..branch_fusion import candidates as fusion_candidates
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
    C, H, W = int(x.shape[3]), tables._hint(x.shape[1]), tables._hint(x.shape[2])
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
        block_q = min(triton.next_power_of_2(max(H, W, 1) + 1), strategy.LONGEST_LINE)
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
        block_q, block_s = min(triton.next_power_of_2(max(H, W, 2)), 16), min(block_s, 8)
        for elements, warps in ((1024, 1), (2048, 2), (2048, 1), (4096, 4)):
            block_g = min(triton.next_power_of_2(groups), max(1, elements // (block_q * block_s)))
            yield dict(BLOCK_Q=block_q, BLOCK_G=block_g, BLOCK_S=block_s, num_warps=warps)


def _word(x: Tensor, groups: int) -> int:
    """Channels that are gathered together out of shared memory: of 16 bits, sharing an offset."""
    share = int(x.shape[3]) // groups
    return 1 if x.element_size() != 2 else 4 if share % 4 == 0 else 2 if share % 2 == 0 else 1


def _block(C: int, most: int) -> int:
    return max(16, min(triton.next_power_of_2(C), most))


def _config(kernel: str, x: Tensor, groups: int) -> dict[str, int]:
    return tables.config(kernel, x, groups, candidates)


def _sizes(x: Tensor, offset: Tensor) -> tuple[int, int, int, int, int, int]:
    """B, H, W, C, offset channels per axis, and channels of each."""
    B, H, W, _ = x.shape
    C, G = int(x.shape[3]), int(offset.shape[3]) // 2
    return B, H, W, C, G, C // G


def _check_size(x: Tensor, channels: int) -> None:
    """Refuse samples that are too large for the kernels, which count in 32 bits inside one."""
    if x.shape[1] * x.shape[2] * channels >= 2**31:
        raise ValueError(
            f"token_mix: a sample must have fewer than 2^31 values, got x {checks.show(x)} with {channels} channels or offsets"
        )


def has(choice: str, kernel: str, x: Tensor, groups: int) -> bool:
    """Tell whether the strategy of ``kernel``, one of strategy.py's, has that choice."""
    return bool(_config(kernel, x, groups)[choice])


def gather(x: Tensor, offset: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """The tokens gathered along W and along H, ``[2, B, H, W, C]``, and the means of those and of the tokens themselves, ``[B, 3, C]``.

    ``shared``: out of shared memory, a line at a time.
    """
    B, H, W, C, G, S = _sizes(x, offset)
    offset, stride = token_stride(offset)
    _check_size(x, max(C, stride, 2 * G))
    if shared:
        return _gather_lines(x, offset, stride)
    config = _config("token_mix_gather", x, G)
    tiles = triton.cdiv(H * W, config["TOKENS"]) + 1  # one idle tile avoids 0/1 specialization of dynamic shapes
    gathered = x.new_empty(2, B, H, W, C)
    partial = torch.empty(B, tiles, 3, C, dtype=torch.float32, device=x.device)
    grid = (B * tiles, triton.cdiv(G, config["BLOCK_G"]))
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_gather_kernel)[grid](x, offset, gathered, partial, B, H * W, H, max(W, 1), tiles, G, S, stride, **config)
    return gathered, partial.sum(1) / max(H * W, 1)


def _gather_lines(x: Tensor, offset: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    B, H, W, C, G, S = _sizes(x, offset)
    config = _config("token_mix_gather_lines", x, G)
    lines, piece, together = config["BLOCK_L"], config["BLOCK_Q"] - 1, config["TOGETHER"]
    along_w, along_h = triton.cdiv(H, lines) * triton.cdiv(W, piece), triton.cdiv(W, lines) * triton.cdiv(H, piece)
    tiles = triton.cdiv(torch.sym_max(along_w, along_h), together) + 1  # one idle tile, as above
    gathered = x.new_empty(2, B, H, W, C)
    partial = torch.empty(B, tiles, 3, C, dtype=torch.float32, device=x.device)
    grid = (B * tiles, triton.cdiv(C // config["CHANNELS"], config["BLOCK_E"]))
    offset_w, offset_h = offset.chunk(2, -1)
    with torch.cuda.device_of(x):
        kernel = wrap_triton(_token_mix_gather_lines_kernel)
        kernel[grid](x, offset_w, gathered, partial, B, H, W, tiles, G, S, stride, True, **config)
        kernel[grid](x, offset_h, gathered, partial, B, H, W, tiles, G, S, stride, False, **config)
    return gathered, partial.sum(1) / max(H * W, 1)


def alpha(means: Tensor, branches: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The mean of the branches' sum ``[B, O]``, and the weights of the branches ``[B, 3, O]`` that follow from it."""
    B, _, C = means.shape
    C, O = int(C), int(branches.shape[1])  # noqa: E741
    tokens = branches.new_empty(B, 1, 1, O)  # what names the configuration: no image size, the dtype of the weights
    pooled, alpha = means.new_empty(B, O), means.new_empty(B, 3, O)
    bottleneck = weights.fc1_weight, weights.fc1_bias, weights.fc2_weight, weights.fc2_bias
    config = _config("token_mix_pooled", tokens, O)
    grid = (triton.cdiv(B, config["BLOCK_B"]), triton.cdiv(O, config["BLOCK_C"]))
    with torch.cuda.device_of(means):
        wrap_triton(_token_mix_pooled_kernel)[grid](means, branches, weights.bias_w, weights.bias_h, pooled, B, C, O, **config)
        config = _config("token_mix_alpha", tokens, O)
        grid = (triton.cdiv(B, config["BLOCK_B"]), triton.cdiv(O, config["BLOCK_C"]))
        wrap_triton(_token_mix_alpha_kernel)[grid](pooled, *bottleneck, alpha, B, O, int(weights.fc1_weight.shape[0]), **config)
    return pooled, alpha


def fold(gathered: Tensor, x: Tensor, groups: int, matrices: Tensor, bias: Tensor) -> Tensor:
    """The projected tokens ``[B, H, W, O]`` by the matrices ``[3, B, O, C]`` of each sample."""
    B, H, W, C = x.shape
    C, O = int(C), int(matrices.shape[2])  # noqa: E741
    _check_size(x, O)
    config = _config("token_mix_fold", x, groups)
    tiles = triton.cdiv(H * W, config["BLOCK_N"])
    y = x.new_empty(B, H, W, O)
    grid = (B * tiles * triton.cdiv(O, config["BLOCK_O"]),)
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_fold_kernel)[grid](gathered, x, matrices, bias, y, B, H * W, tiles, C, O, **config)
    return y


def fuse(branches: list[Tensor], alpha: Tensor, weights: Weights) -> Tensor:
    """The weighted sum of the three branches ``[B, H, W, O]``, which come without their biases."""
    B, H, W, C = branches[0].shape
    C = int(C)
    y = torch.empty_like(branches[0])
    config = _config("token_mix_fuse", y, C)
    tiles = triton.cdiv(H * W, config["BLOCK_N"])
    grid = (B * tiles, triton.cdiv(C, config["BLOCK_C"]))
    with torch.cuda.device_of(y):
        wrap_triton(_token_mix_fuse_kernel)[grid](*branches, alpha, weights.bias_w, weights.bias_h, y, H * W, tiles, C, **config)
    return y


def fuse_backward(dy: Tensor, branches: list[Tensor], alpha: Tensor, weights: Weights) -> tuple[list[Tensor], Tensor, Tensor]:
    """The gradients of the branches, the sum again, and the sums over the tokens of dy times each branch, and of dy, ``[B, 4, C]``."""
    B, H, W, C = dy.shape
    C = int(C)
    dbranches, y = [torch.empty_like(dy) for _ in branches], torch.empty_like(dy)
    config = _config("token_mix_fuse_backward", dy, C)
    tiles = triton.cdiv(H * W, config["BLOCK_N"]) + 1  # one idle tile, as in gather
    partial = torch.empty(B, tiles, 4, C, dtype=torch.float32, device=dy.device)
    grid = (B * tiles, triton.cdiv(C, config["BLOCK_C"]))
    results = *dbranches, y, partial
    with torch.cuda.device_of(dy):
        kernel = wrap_triton(_token_mix_fuse_backward_kernel)
        kernel[grid](dy, *branches, alpha, weights.bias_w, weights.bias_h, *results, H * W, tiles, C, **config)
    return dbranches, y, partial.sum(1)


def scatter(dgathered: list[Tensor], x: Tensor, offset: Tensor, dmean: Tensor, *, deterministic: bool) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the offsets.

    ``dgathered``: of what the three branches take in, without ``dmean [B, 3, C]``, which every token gets through the means.
    """
    B, H, W, C, G, S = _sizes(x, offset)
    offset, stride = token_stride(offset)
    lines = deterministic or has("LINES", "token_mix_backward", x, G)
    config = _config("token_mix_doffset", x, G)
    tiles = triton.cdiv(H * W, config["BLOCK_N"])
    grid = (B * tiles * triton.cdiv(G, config["BLOCK_G"]),)
    doffset = torch.empty_like(offset, memory_format=torch.contiguous_format)
    along_w, along_h, own = dgathered
    dx = x if lines else own + dmean[:, 2, None, None]  # by lines, this kernel writes none
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_doffset_kernel)[grid](
            along_w, along_h, x, offset, dmean, doffset, dx, H * W, H, W, tiles, G, S, stride, not lines, **config
        )
        if lines:
            config = _config("token_mix_dx", x, G)
            blocks = triton.cdiv(G, config["BLOCK_G"]) * triton.cdiv(S, config["BLOCK_S"])
            kernel = wrap_triton(_token_mix_dx_kernel)
            dx_w, dx = torch.empty_like(x), torch.empty_like(x)
            offset_w, offset_h = offset.chunk(2, -1)
            grid_w = (B * H, triton.cdiv(W, config["BLOCK_Q"]), blocks)
            grid_h = (B * W, triton.cdiv(H, config["BLOCK_Q"]), blocks)
            kernel[grid_w](along_w, own, offset_w, dmean, dx_w, H, W, G, S, stride, True, **config)
            kernel[grid_h](along_h, dx_w, offset_h, dmean, dx, H, W, G, S, stride, False, **config)
    return dx.to(x.dtype), doffset
