"""How token_mix's kernels are launched: their launch configurations, their grids, and what they leave to a sum at the end."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.library import wrap_triton

from ..._triton import runs_kernels, token_stride, triton
from ...algebra import Weights
from ...tuning import tables
from ..axial_gather import _axial_gather_dx_kernel
from ..axial_gather import candidates as gather_candidates
from .alpha import _token_mix_alpha_kernel, _token_mix_pooled_kernel
from .kernels import _token_mix_dw_kernel, _token_mix_dx_kernel, _token_mix_fwd_kernel
from .mean import _token_mix_mean_kernel


def _outputs(C: int, most: int) -> dict[str, int]:
    """C outputs, or an equal part of them that is at most ``most``, as a power of two and another for the rest."""
    part = triton.cdiv(C, triton.cdiv(C, most))
    block = max(16, 1 << (part.bit_length() - 1))
    return dict(BLOCK_O=block, BLOCK_R=max(16, triton.next_power_of_2(part - block)) if part > block else 0)


def _roomy(device: torch.device) -> bool:
    """Whether matrix units read both operands from shared memory, which leaves the registers to the sums: Hopper's, and big Blackwells'."""
    return device.type != "cuda" or (torch.version.hip is None and torch.cuda.get_device_capability(device)[0] in (9, 10))


@tables.distinct
def candidates(kernel: str, x: Tensor, groups: int) -> Iterator[dict[str, int]]:
    """Launch configurations of ``kernel`` worth trying for tokens x with ``groups`` offset channels per axis; the first always works."""
    C, T = int(x.shape[3]), tables._hint(x.shape[1]) * tables._hint(x.shape[2])
    if kernel in ("token_mix", "token_mix_backward"):
        # Folding saves 1 product of 4 over the tokens forward, 5 of 11 backward, for matrices of C * C a sample: bytes, scarcer on a GPU.
        tokens_per_channel = T // C
        folded = int(tokens_per_channel >= (16 if runs_kernels(x) else 4))
        yield dict(FOLD=folded)
        yield dict(FOLD=1 - folded)
        return
    half = x.element_size() == 2
    block_s = triton.next_power_of_2(C // groups)

    def tile(tokens: int, channels: int, **others: int) -> dict[str, int]:
        """Fewer tokens where more channels than that share an offset."""
        return dict(BLOCK_N=max(16, tokens // max(1, block_s // channels)), BLOCK_G=max(1, channels // block_s), BLOCK_S=block_s) | others

    if kernel == "token_mix_mean":
        for tokens, warps, together in ((16, 4, 256), (16, 4, 512), (32, 4, 256), (16, 2, 256)):
            yield tile(tokens, 64, TOKENS=together, num_warps=warps)
    elif kernel in ("token_mix_pooled", "token_mix_alpha"):
        hidden = {} if kernel == "token_mix_pooled" else dict(BLOCK_F=max(16, triton.next_power_of_2(max(1, C // 4))))
        for channels in (32, 16) if half else (16,):
            yield dict(BLOCK_B=16, BLOCK_C=channels, num_warps=4 if half else 8) | hidden
    elif kernel == "token_mix_fwd":
        # All outputs by one program, so that nothing is gathered twice, as long as their sums fit its registers.
        outputs = _outputs(C, 384)
        few = sum(outputs.values()) <= 128
        if half and _roomy(x.device):
            for channels, stages in ((32, 1), (64, 1), (32, 2)) if few else ((64, 1), (32, 1), (32, 2)):
                yield tile(64, channels) | outputs | dict(num_warps=4 if few else 8, num_stages=stages)
            yield tile(64, 64) | _outputs(C, 256) | dict(num_warps=8, num_stages=1)
        elif half:
            yield tile(64 if few else 32, 32) | outputs | dict(num_warps=8, num_stages=1)
            yield tile(64, 32) | _outputs(C, 160) | dict(num_warps=8, num_stages=1)
            yield tile(32, 32) | _outputs(C, 64) | dict(num_warps=4, num_stages=1)
        else:
            yield tile(32, 32) | _outputs(C, 64) | dict(num_warps=4, num_stages=1)
            yield tile(32, 32) | _outputs(C, 128) | dict(num_warps=8, num_stages=1)
    elif kernel == "token_mix_dw":
        # PROGRAMS: two or more on each of a big GPU's multiprocessors.
        if half:
            for programs in (528, 264):
                yield tile(32, 64) | _outputs(C, 384) | dict(PROGRAMS=programs, num_warps=8, num_stages=1)
            yield tile(32, 64) | _outputs(C, 128) | dict(PROGRAMS=528, num_warps=8, num_stages=1)
        else:
            for programs in (528, 264):
                yield tile(16, 32) | _outputs(C, 64) | dict(PROGRAMS=programs, num_warps=8, num_stages=1)
    elif kernel == "token_mix_dx":
        if half:
            tiles = [(64, 64, 8), (32, 64, 4), (64, 32, 4), (64, 64, 4)]  # the last has many sums for its registers
            for tokens, channels, warps in tiles if block_s > 2 and _roomy(x.device) else tiles[:3]:
                yield tile(tokens, channels, BLOCK_O=_block_of(C), num_warps=warps, num_stages=1)
        else:
            yield tile(32, 32, BLOCK_O=min(_block_of(C), 32), num_warps=4, num_stages=1)
            yield tile(32, 64, BLOCK_O=min(_block_of(C), 32), num_warps=8, num_stages=1)


def _block_of(C: int) -> int:
    return max(16, min(triton.next_power_of_2(C), 64))


def _config(kernel: str, x: Tensor, groups: int) -> dict[str, int]:
    return tables.config(kernel, x, groups, candidates)


def config_beside_d(x: Tensor, groups: int) -> dict[str, int]:
    """Of the forward kernel where it also sums up the gradient of alpha, for which d takes as many registers as the outputs."""
    config = next(candidates("token_mix_fwd", x, groups))
    return config | dict(BLOCK_G=max(1, 32 // config["BLOCK_S"]), num_warps=8) | _outputs(int(x.shape[3]), 160 if _roomy(x.device) else 128)


def folds(operator: str, x: Tensor, groups: int) -> bool:
    """Whether ``operator``, forward or backward, folds alpha and the projection into matrices for each sample."""
    return bool(_config(operator, x, groups)["FOLD"])


def mean(x: Tensor, offset: Tensor, stride: int) -> Tensor:
    """The means over the tokens of what the three branches gather, ``[B, 3, C]``."""
    B, H, W, _ = x.shape
    G, C, T = int(offset.shape[3]) // 2, int(x.shape[3]), H * W
    config = _config("token_mix_mean", x, G)
    tiles = triton.cdiv(T, config["TOKENS"]) + 1  # one idle tile avoids 0/1 specialization of dynamic shapes
    partial = torch.empty(B, tiles, 3, C, dtype=torch.float32, device=x.device)
    grid = (B * tiles, triton.cdiv(G, config["BLOCK_G"]))
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_mean_kernel)[grid](x, offset, partial, T, H, W, tiles, G, C // G, stride, **config)
    return partial.sum(1) / max(T, 1)


def alpha_and_steps(means: Tensor, branches: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The fusion's weights, and what one accumulator is multiplied by after each branch for them, both ``[B, 3, C]``."""
    B, _, C = means.shape
    C = int(C)
    tokens = branches.new_empty(B, 1, 1, C)  # what names the configuration: no image size, the dtype of the weights
    pooled, alpha, steps = means.new_empty(B, C), torch.empty_like(means), torch.empty_like(means)
    bottleneck = weights.fc1_weight, weights.fc1_bias, weights.fc2_weight, weights.fc2_bias
    config = _config("token_mix_pooled", tokens, C)
    grid = (triton.cdiv(B, config["BLOCK_B"]), triton.cdiv(C, config["BLOCK_C"]))
    with torch.cuda.device_of(means):
        wrap_triton(_token_mix_pooled_kernel)[grid](means, branches, weights.bias_w, weights.bias_h, pooled, B, C, **config)
        config = _config("token_mix_alpha", tokens, C)
        grid = (triton.cdiv(B, config["BLOCK_B"]), triton.cdiv(C, config["BLOCK_C"]))
        wrap_triton(_token_mix_alpha_kernel)[grid](pooled, *bottleneck, alpha, steps, B, C, int(weights.fc1_weight.shape[0]), **config)
    return alpha, steps


def mix(
    x: Tensor,
    offset: Tensor,
    stride: int,
    matrices: Tensor,
    steps: Tensor,
    bias: Tensor,
    weights: Weights,
    *,
    folded: bool,
    project: bool = False,
    d: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The pass over the tokens that makes y, or, unless ``folded`` or with ``project``, the fused branches before the projection.

    With ``d``, the gradient of the fused branches: also the sums over the tokens of d times each branch, and of d, ``[B, 4, C]``.
    """
    B, H, W, _ = x.shape
    G, C, T = int(offset.shape[3]) // 2, int(x.shape[3]), H * W
    config = _config("token_mix_fwd", x, G) if d is None else config_beside_d(x, G)
    outputs = config["BLOCK_O"] + config["BLOCK_R"]
    inside = project and outputs >= C
    tiles = triton.cdiv(T, config["BLOCK_N"])
    y = torch.empty_like(x)
    # One idle tile, as in mean.
    partial = steps if d is None else torch.zeros(B, tiles + 1, 4, C, dtype=torch.float32, device=x.device)
    proj = weights.proj_weight, weights.proj_bias
    shape = B, T, H, W, tiles, G, C // G, stride
    grid = (B * tiles * triton.cdiv(C, outputs),)
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_fwd_kernel)[grid](
            x, offset, matrices, steps, bias, *proj, y, x if d is None else d, partial, *shape, folded, inside, d is not None, **config
        )
    if d is not None:
        w, h, c, dsum = partial.sum(1).unbind(1)  # w, h and c with the sum after the branch, from which the one before it is taken
        partial = torch.stack([w, h - steps[:, 0] * w, c - steps[:, 1] * h, dsum], 1)
    return torch.nn.functional.linear(y, *proj) if project and not inside else y, partial


def products(dy: Tensor, x: Tensor, offset: Tensor, stride: int, alpha: Tensor, *, folded: bool) -> Tensor:
    """dy.T @ the gathered tokens of the three branches: where ``folded`` of each sample, ``[3, B, C, C]``, else of all samples, weighted by
    alpha, ``[3, C, C]``."""
    B, H, W, _ = x.shape
    G, C, T = int(offset.shape[3]) // 2, int(x.shape[3]), H * W
    config = dict(_config("token_mix_dw", x, G))
    blocks = 3 * triton.cdiv(G, config["BLOCK_G"]) * triton.cdiv(C, config["BLOCK_O"] + config["BLOCK_R"])
    share = max(1, config.pop("PROGRAMS") // blocks)
    batch = max(1, tables._hint(B))
    splits, samples = B, 1
    if not folded:
        batch = min(batch, share)
        splits, samples = batch, triton.cdiv(B, batch)
    chunks = max(1, min(share // batch, tables._hint(T) // (2 * config["BLOCK_N"])))
    length = triton.cdiv(triton.cdiv(T, chunks), config["BLOCK_N"]) * config["BLOCK_N"]
    made = x.new_empty(3, splits * chunks, C, C, dtype=torch.float32)
    shape = B, T, H, W, samples, length, G, C // G, stride
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_dw_kernel)[(splits * chunks * blocks,)](dy, x, offset, alpha, made, *shape, folded, chunks, **config)
    if not folded:
        return made.sum(1)
    return made.view(3, B, chunks, C, C).sum(2) if chunks > 1 else made


def token_gradients(
    dy: Tensor, x: Tensor, offset: Tensor, stride: int, matrices: Tensor, alpha: Tensor, dmean: Tensor, *, folded: bool, deterministic: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x, in float32, and of the offsets."""
    B, H, W, _ = x.shape
    G, C, T = int(offset.shape[3]) // 2, int(x.shape[3]), H * W
    config = _config("token_mix_dx", x, G)
    tiles = triton.cdiv(T, config["BLOCK_N"])
    dx = torch.empty_like(x, dtype=torch.float32)
    gathered = x.new_empty(2, B, H, W, C) if deterministic else dx
    doffset = torch.empty_like(offset, memory_format=torch.contiguous_format)
    shape = B, T, H, W, tiles, G, C // G, stride, folded
    grid = (B * tiles * triton.cdiv(G, config["BLOCK_G"]),)
    with torch.cuda.device_of(x):
        kernel = wrap_triton(_token_mix_dx_kernel)
        kernel[grid](dy, x, offset, matrices, alpha, dmean, doffset, dx, *shape, True, False, **config)
        kernel[grid](dy, x, offset, matrices, alpha, dmean, doffset, gathered, *shape, False, not deterministic, **config)
    if deterministic:
        dx = dx + _spread(gathered[0], offset[..., :G], True) + _spread(gathered[1], offset[..., G:], False)
    return dx, doffset


def _spread(d: Tensor, offset: Tensor, along_w: bool) -> Tensor:
    """The gradient of x, in float32, from that of the tokens gathered along one axis, by programs that own lines."""
    B, H, W, _ = d.shape
    G, C = int(offset.shape[3]), int(d.shape[3])
    offset, stride = token_stride(offset)
    dx = torch.empty_like(d, dtype=torch.float32)
    config = tables.config("axial_gather_dx", d, G, gather_candidates)
    lines, length = (B * H, W) if along_w else (B * W, H)
    grid = (lines, triton.cdiv(length, config["BLOCK_Q"]), triton.cdiv(G, config["BLOCK_G"]))
    with torch.cuda.device_of(d):
        wrap_triton(_axial_gather_dx_kernel)[grid](d, offset, dx, H, W, G, C // G, stride, along_w, **config)
    return dx
