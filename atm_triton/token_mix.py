"""token_mix: the whole Active Token Mixer, in training and inference, without ever writing gathered tokens or branches.

With g_w, g_h the tokens gathered along the two axes and g_c = x:

    s = mean over tokens of (FC_w g_w + FC_h g_h + FC_c g_c);   alpha = softmax over the three of FC2(GELU(FC1 s))
    y = proj(alpha_w * FC_w g_w + alpha_h * FC_h g_h + alpha_c * FC_c g_c)

The mean commutes with the FCs, so alpha is known before any product over the tokens: one pass gathers and only adds up (the means), a small
kernel makes alpha of them, and one more pass gathers while it loads the operand of its product. Where a sample has many tokens for its
channels, alpha and proj are folded into per-sample matrices (mixing.py) and the pass is three products into one accumulator; elsewhere
alpha weighs each branch's accumulator, and proj follows in the same kernel if a program owns whole rows.

Backward: the same two ways. Everything is gathered again; only x, the offsets and the means are saved. Weight gradients are summed
sample by sample in registers, which also gives the gradient of alpha; that of x is spread atomically, or in a fixed order by programs that
own lines, where PyTorch is asked for deterministic algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.library import wrap_triton

from . import checks, launch, reference
from ._triton import register_flop_formula, runs_kernels, token_stride, triton, triton_op
from .axial_gather import _axial_gather_dx_kernel
from .axial_gather import candidates as gather_candidates
from .mixing import (
    Weights,
    _token_mix_alpha_kernel,
    branch_weights_backward,
    fold,
    fold_backward,
    shift,
    unfolded_backward,
)
from .token_mix_kernels import (
    _token_mix_dw_kernel,
    _token_mix_dx_kernel,
    _token_mix_fwd_kernel,
    _token_mix_mean_kernel,
)

KERNELS = {
    "token_mix": ("token_mix", "token_mix_mean", "token_mix_alpha", "token_mix_fwd"),
    "token_mix_backward": ("token_mix_backward", "token_mix_alpha", "token_mix_fwd", "token_mix_dw", "token_mix_dx"),
}


@launch.distinct
def candidates(kernel: str, x: Tensor, groups: int) -> Iterator[dict[str, int]]:
    """Launch configurations of ``kernel`` worth trying for tokens x with ``groups`` offset channels per axis; the first always works."""
    C, T = int(x.shape[3]), launch._hint(x.shape[1]) * launch._hint(x.shape[2])
    if kernel in ("token_mix", "token_mix_backward"):
        # Folding saves 1 product of 4 over the tokens forward, 5 of 11 backward, for matrices of C * C a sample: bytes, scarcer on a GPU.
        tokens_per_channel = T // C
        folded = int(tokens_per_channel >= (16 if runs_kernels(x) else 4))
        yield dict(FOLD=folded)
        yield dict(FOLD=1 - folded)
        return
    half = x.element_size() == 2
    block_s = triton.next_power_of_2(C // groups)

    def tile(tokens: int, channels: int, outputs: int = 0, **others: int) -> dict[str, int]:
        """Fewer tokens and outputs where more channels than that share an offset."""
        excess = max(1, block_s // channels)
        config = dict(BLOCK_N=max(16, tokens // excess), BLOCK_G=max(1, channels // block_s), BLOCK_S=block_s)
        if outputs:
            config["BLOCK_O"] = max(16, min(triton.next_power_of_2(C), outputs // excess))
        return config | others

    if kernel == "token_mix_mean":
        for tokens, warps, together in ((32, 4, 256), (32, 4, 512), (16, 4, 256), (32, 4, 128), (32, 8, 256), (64, 8, 256)):
            yield tile(tokens, 64, TOKENS=together, num_warps=warps)
    elif kernel == "token_mix_alpha":
        block_f = max(16, triton.next_power_of_2(max(1, C // 4)))
        few = 32 if half else 16
        for block_c, warps in ((few, 8), (few, 4), (2 * few, 8))[: 3 if block_f < 256 else 2]:  # the last spills on AMD
            yield dict(BLOCK_B=16, BLOCK_C=block_c, BLOCK_F=block_f, num_warps=warps)
    elif kernel == "token_mix_fwd":
        if half:
            yield tile(64, 32, 64, num_warps=8)
            yield tile(64, 32, 64, num_warps=8, num_stages=2)
            yield tile(64, 32, 64, num_warps=4, num_stages=2)  # more stages, or as many channels, spill on Ampere
            for tokens, channels, outputs, warps in ((64, 32, 32, 4), (64, 64, 64, 8), (64, 32, 128, 8), (128, 32, 64, 8)):
                yield tile(tokens, channels, outputs, num_warps=warps)
        else:
            yield tile(32, 32, 32, num_warps=4)
            yield tile(64, 32, 32, num_warps=8)
            yield tile(32, 32, 64, num_warps=8)
    elif kernel == "token_mix_dw":
        base = tile(32 if half else 16, 32, 64, num_warps=8, num_stages=1)
        blocks = triton.cdiv(groups, base["BLOCK_G"]) * triton.cdiv(C, base["BLOCK_O"])
        # Enough programs for two on each of a big GPU's multiprocessors, of at least 512 tokens each.
        chunks = max(1, min(264 // (blocks * max(1, launch._hint(x.shape[0]))), T // 512))
        chunks = 1 << (chunks.bit_length() - 1)
        splits = 1 << (max(1, min(264 // blocks, 16)).bit_length() - 1)
        yield base | dict(CHUNKS=chunks, SPLITS=splits)
        yield base | dict(CHUNKS=2 * chunks if 512 * chunks <= T else chunks, SPLITS=2 * splits)
        yield base | dict(CHUNKS=max(1, chunks // 2), SPLITS=max(1, splits // 2))
        # More stages, tokens or channels spill, but on Hopper.
        yield tile(16, 32, 64, num_warps=8, num_stages=1, CHUNKS=chunks, SPLITS=splits)
    elif kernel == "token_mix_dx":
        if half:
            yield tile(64, 64, 32, num_warps=8)
            yield tile(64, 64, 64, num_warps=8)
            yield tile(64, 32, 64, num_warps=8)
            yield tile(64, 32, 64, num_warps=4)
            yield tile(32, 64, 64, num_warps=4)
        else:
            yield tile(32, 32, 32, num_warps=4)
            yield tile(32, 64, 32, num_warps=8)


def _config(kernel: str, x: Tensor, groups: int) -> dict[str, int]:
    return launch.config(kernel, x, groups, candidates)


@triton_op("token_mix")
def _token_mix(
    x: Tensor,
    offset: Tensor,
    weight_w: Tensor,
    bias_w: Tensor,
    weight_h: Tensor,
    bias_h: Tensor,
    weight_c: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    weights = Weights(weight_w, bias_w, weight_h, bias_h, weight_c, fc1_weight, fc1_bias, fc2_weight, fc2_bias, proj_weight, proj_bias)
    with checks.autocast_off(x):
        return _forward(x, offset, weights)


def _forward(x: Tensor, offset: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """y and the means."""
    folded = bool(_config("token_mix", _image(x, offset), offset.shape[3] // 2)["FOLD"])
    if not runs_kernels(x):
        return reference.token_mix_forward(x, offset, weights, folded)
    x, weights = _image(x.contiguous(), offset), Weights(*(t.contiguous() for t in weights))
    offset, stride = token_stride(offset)
    B, H, W, C = x.shape
    G, T, C = int(offset.shape[3]) // 2, H * W, int(C)
    if T * max(C, stride) >= 2**31:  # inside a sample the kernels count in 32 bits
        raise ValueError(f"token_mix: a sample of x must have fewer than 2^31 values, got {checks.show(x)}")
    branches = weights.branches()
    config = _config("token_mix_mean", x, G)
    tiles = triton.cdiv(T, config["TOKENS"]) + 1  # one idle tile: a count that may be 1 would recompile dynamic shapes
    partial = torch.empty(B, tiles, 3, C, dtype=torch.float32, device=x.device)
    grid = (B * tiles, triton.cdiv(G, config["BLOCK_G"]))
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_mean_kernel)[grid](x, offset, partial, T, H, W, tiles, G, C // G, stride, **config)
    means = partial.sum(1) / T
    alpha = _alpha(means, branches, weights)
    if folded:
        matrices, bias = fold(alpha, weights)
        y = _mix(x, offset, stride, matrices, alpha, bias, weights, folded=True, project=False)
    else:
        y = _mix(x, offset, stride, branches, alpha, shift(alpha, weights), weights, folded=False, project=True)
    return y.flatten(1, 2), means


def _image(x: Tensor, offset: Tensor) -> Tensor:
    """Tokens ``[B, N, C]`` as ``[B, H, W, C]``."""
    return x.unflatten(1, offset.shape[1:3])


def _alpha(means: Tensor, branches: Tensor, weights: Weights) -> Tensor:
    B, _, C = means.shape
    tokens = branches.new_empty(B, 1, 1, int(C))  # what names the configuration: no image size, the dtype of the weights
    config = _config("token_mix_alpha", tokens, int(C))
    alpha = torch.empty_like(means)
    small = weights.bias_w, weights.bias_h, weights.fc1_weight, weights.fc1_bias, weights.fc2_weight, weights.fc2_bias
    with torch.cuda.device_of(means):
        wrap_triton(_token_mix_alpha_kernel)[(triton.cdiv(B, config["BLOCK_B"]),)](
            means, branches, *small, alpha, B, int(C), int(weights.fc1_weight.shape[0]), **config
        )
    return alpha


def _mix(
    x: Tensor, offset: Tensor, stride: int, matrices: Tensor, alpha: Tensor, bias: Tensor, weights: Weights, *, folded: bool, project: bool
) -> Tensor:
    """The pass over the tokens that makes y, or, without ``project``, the fused branches before the projection."""
    B, H, W, _ = x.shape
    G, C, T = int(offset.shape[3]) // 2, int(x.shape[3]), H * W
    config = _config("token_mix_fwd", x, G)
    inside = project and config["BLOCK_O"] >= C
    y = torch.empty_like(x)
    tiles = triton.cdiv(T, config["BLOCK_N"])
    grid = (B * tiles * triton.cdiv(C, config["BLOCK_O"]),)
    proj = weights.proj_weight, weights.proj_bias
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_fwd_kernel)[grid](
            x, offset, matrices, alpha, bias.contiguous(), *proj, y, B, T, H, W, tiles, G, C // G, stride, folded, inside, **config
        )
    return torch.nn.functional.linear(y, *proj) if project and not inside else y


@triton_op("token_mix_backward")
def _token_mix_backward(
    dy: Tensor,
    x: Tensor,
    offset: Tensor,
    means: Tensor,
    weight_w: Tensor,
    bias_w: Tensor,
    weight_h: Tensor,
    bias_h: Tensor,
    weight_c: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = Weights(weight_w, bias_w, weight_h, bias_h, weight_c, fc1_weight, fc1_bias, fc2_weight, fc2_bias, proj_weight, proj_bias)
    with checks.autocast_off(x):
        dx, doffset, dweights = _gradients(dy, x, offset, means, weights, deterministic)
        return dx, doffset, *dweights


def _gradients(
    dy: Tensor, x: Tensor, offset: Tensor, means: Tensor, weights: Weights, deterministic: bool
) -> tuple[Tensor, Tensor, Weights]:
    folded = bool(_config("token_mix_backward", _image(x, offset), offset.shape[3] // 2)["FOLD"])
    if not runs_kernels(x):
        return reference.token_mix_backward(dy, x, offset, means, weights, folded)
    dy, x, weights = _image(dy.contiguous(), offset), _image(x.contiguous(), offset), Weights(*(t.contiguous() for t in weights))
    offset, stride = token_stride(offset)
    B, H, W, _ = x.shape
    G, C, T = int(offset.shape[3]) // 2, int(x.shape[3]), H * W
    branches = weights.branches()
    alpha = _alpha(means, branches, weights)
    if folded:
        matrices, _ = fold(alpha, weights)
        d = dy
        products, _, dsum = _products(d, x, offset, stride, matrices, alpha, folded)
        gradients = fold_backward(products, dsum, alpha, weights)
    else:
        matrices = branches
        fused = _mix(x, offset, stride, matrices, alpha, shift(alpha, weights), weights, folded=False, project=False)
        rows = dy.view(-1, C)
        dproj = (rows.mT @ fused.view(-1, C)).to(torch.float32)
        d = (rows @ weights.proj_weight).view(x.shape)
        products, dalpha, dsum = _products(d, x, offset, stride, matrices, alpha, folded)
        gradients = unfolded_backward(products, dalpha, dsum, dproj, rows.sum(0, dtype=torch.float32), alpha, weights)
    dmeans, dweights = branch_weights_backward(gradients, alpha, means, weights)

    dx = x.new_empty(3, B, H, W, C) if deterministic else torch.zeros_like(x, dtype=torch.float32)
    doffset = torch.empty_like(offset, memory_format=torch.contiguous_format)
    config = _config("token_mix_dx", x, G)
    tiles = triton.cdiv(T, config["BLOCK_N"])
    grid = (B * tiles * triton.cdiv(G, config["BLOCK_G"]),)
    dmean = (dmeans / T).contiguous()
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_dx_kernel)[grid](
            d, x, offset, matrices, alpha, dmean, doffset, dx, B, T, H, W, tiles, G, C // G, stride, folded, not deterministic, **config
        )
    if deterministic:
        dx = dx[2] + _spread(dx[0], offset[..., :G], True) + _spread(dx[1], offset[..., G:], False)
    return dx.to(x.dtype).flatten(1, 2), doffset, dweights


def _products(
    dy: Tensor, x: Tensor, offset: Tensor, stride: int, matrices: Tensor, alpha: Tensor, folded: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dy.T @ the gathered tokens of the three branches: where ``folded`` of each sample, ``[3, B, C, C]``, else weighted and added up,
    ``[3, C, C]``, with the gradient of alpha ``[B, 3, C]``, which has no meaning where folded. And dy's sum over the tokens, ``[B, C]``."""
    B, H, W, _ = x.shape
    G, C, T = int(offset.shape[3]) // 2, int(x.shape[3]), H * W
    config = dict(_config("token_mix_dw", x, G))
    chunks, splits = config.pop("CHUNKS"), config.pop("SPLITS")
    if folded:
        programs, samples = B * chunks, 1
    else:
        programs, samples, chunks = splits, triton.cdiv(B, splits), 1
    length = triton.cdiv(triton.cdiv(T, chunks), config["BLOCK_N"]) * config["BLOCK_N"]
    i_tiles = triton.cdiv(G, config["BLOCK_G"])
    products = x.new_empty(3, programs, C, C, dtype=torch.float32)
    dalpha, dsum = (x.new_empty(size, dtype=torch.float32) for size in ((B, i_tiles, 3, C), (B, chunks, C)))
    grid = (programs, i_tiles * triton.cdiv(C, config["BLOCK_O"]))
    with torch.cuda.device_of(x):
        wrap_triton(_token_mix_dw_kernel)[grid](
            dy, x, offset, matrices, alpha, products, dalpha, dsum, B, T, H, W, samples, length, G, C // G, stride, folded, chunks, **config
        )
    if not folded:
        return products.sum(1), dalpha.sum(1), dsum.squeeze(1)
    products = products.view(3, B, chunks, C, C)
    return products.sum(2) if chunks > 1 else products.squeeze(2), dalpha, dsum.sum(1)


def _spread(d: Tensor, offset: Tensor, along_w: bool) -> Tensor:
    """The gradient of x from that of the tokens gathered along one axis, by programs that own lines."""
    B, H, W, _ = d.shape
    G, C = int(offset.shape[3]), int(d.shape[3])
    offset, stride = token_stride(offset)
    dx = torch.empty_like(d)
    config = launch.config("axial_gather_dx", d, G, gather_candidates)
    lines, length = (B * H, W) if along_w else (B * W, H)
    grid = (lines, triton.cdiv(length, config["BLOCK_Q"]), triton.cdiv(G, config["BLOCK_G"]))
    with torch.cuda.device_of(d):
        wrap_triton(_axial_gather_dx_kernel)[grid](d, offset, dx, H, W, G, C // G, stride, along_w, **config)
    return dx


def _setup_context(ctx, inputs, output):
    x, offset, *weights = inputs
    _, means = output
    ctx.mark_non_differentiable(means)
    ctx.save_for_backward(x, offset, means, *weights)


def _backward(ctx, dy, dmeans):
    return _token_mix_backward(dy, *ctx.saved_tensors, torch.are_deterministic_algorithms_enabled())


_token_mix.register_autograd(_backward, setup_context=_setup_context)


def _flops(x: torch.Size, hidden: int) -> int:
    """Forward: four products over the tokens, two gathers, the fusion, and two FCs a sample."""
    B, N, C = x
    return 2 * B * (4 * N * C * C + 4 * C * hidden) + 13 * math.prod(x)


register_flop_formula(torch.ops.atm_triton.token_mix)(lambda x, *rest, **__: _flops(x, rest[6][0]))
register_flop_formula(torch.ops.atm_triton.token_mix_backward)(lambda dy, *rest, **__: 2 * _flops(dy, rest[8][0]))


def token_mix(
    x: Tensor,
    offset: Tensor,
    weight_w: Tensor,
    bias_w: Tensor,
    weight_h: Tensor,
    bias_h: Tensor,
    weight_c: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """The Active Token Mixer in one operator: gather along both axes, weigh, project (paper, section 3.2).

    Args:
        x: Tokens ``[B, H, W, C]``, any strides.
        offset: ``[B, H, W, 2 * G]`` in tokens, G dividing C: the first G along W, the last G along H. Its dtype may differ; autocast
            leaves it.
        weight_w, bias_w, weight_h, bias_h, weight_c: FCs of the tokens gathered along W and along H, and of the tokens themselves,
            ``[C, C]`` and ``[C]``.
        fc1_weight, fc1_bias, fc2_weight, fc2_bias: The bottleneck that makes the fusion's weights of the branches' mean: ``[F, C]``,
            ``[F]``, ``[3 * C, F]`` and ``[3 * C]``, with F = max(1, C // 4); its outputs are read as ``[C, 3]``, order w, h, c.
        proj_weight, proj_bias: The projection of the fused tokens, ``[C, C]`` and ``[C]``.

    Returns:
        ``[B, H, W, C]`` in x's dtype (autocast's, where it is on); positions, means and the fusion's weights are computed in float32
        (float64 for float64 input).

    The gradient of x is added up in any order, unless ``torch.use_deterministic_algorithms(True)``, when its order is fixed.

    Raises:
        ValueError: a shape that does not fit, or tensors on different devices.
        TypeError: a dtype that is not floating point, or weights of another dtype than x.
    """
    op = "token_mix"
    weights = Weights(weight_w, bias_w, weight_h, bias_h, weight_c, fc1_weight, fc1_bias, fc2_weight, fc2_bias, proj_weight, proj_bias)
    checks.tokens(op, "x", x)
    checks.same_place(op, x=x, offset=offset, **weights._asdict())
    C = x.shape[3]
    if offset.ndim != 4 or offset.shape[:3] != x.shape[:3]:
        raise ValueError(f"{op}: offset must be [B, H, W, 2 * G] with B, H, W of x {checks.show(x)}, got {checks.show(offset)}")
    G = offset.shape[3] // 2
    if G == 0 or offset.shape[3] % 2 or C % G:
        raise ValueError(
            f"{op}: the {offset.shape[3]} offset channels must be 2 * G with G dividing the {C} channels of x, "
            f"got x {checks.show(x)}, offset {checks.show(offset)}"
        )
    hidden = max(1, C // 4)
    expected = ((C, C), (C,), (C, C), (C,), (C, C), (hidden, C), (hidden,), (3 * C, hidden), (3 * C,), (C, C), (C,))
    for (name, t), shape in zip(weights._asdict().items(), expected, strict=True):
        checks.shape(op, name, t, shape, f"of that size for the {C} channels of x")
    x, *cast = checks.to_autocast(x, *weights)
    for name, t in zip(Weights._fields, cast, strict=True):
        if t.dtype != x.dtype:
            raise TypeError(f"{op}: {name} must have x's dtype {x.dtype}, got {t.dtype}")
    # As [B, N, C]: reference.py says what Inductor makes of four dimensions.
    return _token_mix(x.flatten(1, 2), offset, *cast)[0].view(x.shape)
