"""token_mix: the whole Active Token Mixer, in training and inference, without ever writing gathered tokens or branches.

With g_w, g_h the tokens gathered along the two axes and g_c = x:

    s = mean over tokens of (FC_w g_w + FC_h g_h + FC_c g_c);   alpha = softmax over the three of FC2(GELU(FC1 s))
    y = proj(alpha_w * FC_w g_w + alpha_h * FC_h g_h + alpha_c * FC_c g_c)

The mean commutes with the FCs, so alpha is known before any product over the tokens: one pass gathers and only adds up (the means), two
small kernels make alpha of them, and one more pass gathers while it loads the operand of its products, whose results, weighted by alpha,
share one accumulator. Where a sample has many tokens for its channels, alpha and proj are folded into per-sample matrices (algebra.py);
elsewhere the accumulator is multiplied after each branch, and proj follows in the same kernel if a program owns whole rows.

Backward: the same two ways. Everything is gathered again; only x, the offsets, the means and the weights as they are given are saved. Where
nothing is folded, the fused branches are computed again for the projection's gradient, which also gives the gradient of alpha. The gradient
of x begins with the identity branch, and the other two are added to it atomically, or in a fixed order by programs that own
lines, where PyTorch is asked for deterministic algorithms.

kernels.py has the kernels, launch.py how they are launched.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import flops, plain
from ..._triton import register_flop_formula, runs_kernels, token_stride, triton_op
from ...algebra import Weights, branch_weights_backward, fold, fold_backward, shift, unfolded_backward
from .. import checks
from .launch import alpha_and_steps, candidates, folds, mean, mix, products, token_gradients

__all__ = ["KERNELS", "candidates", "token_mix"]
KERNELS = {
    "token_mix": ("token_mix", "token_mix_mean", "token_mix_pooled", "token_mix_alpha", "token_mix_fwd"),
    "token_mix_backward": (
        "token_mix_backward",
        "token_mix_pooled",
        "token_mix_alpha",
        "token_mix_dw",
        "token_mix_dx",
    ),
}


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


def _forward(x: Tensor, offset: Tensor, parameters: Weights) -> tuple[Tensor, Tensor]:
    """y and the means. The parameters are cast here, so that autograd keeps them and no copies under autocast."""
    weights = parameters.to(x.dtype)
    folded = folds("token_mix", _image(x, offset), offset.shape[3] // 2)
    if not runs_kernels(x):
        return plain.token_mix_forward(x, offset, weights, folded)
    x, weights = _image(x.contiguous(), offset), Weights(*(t.contiguous() for t in weights))
    offset, stride = token_stride(offset)
    _, H, W, C = x.shape
    if H * W * max(int(C), stride) >= 2**31:  # inside a sample the kernels count in 32 bits
        raise ValueError(f"token_mix: a sample of x must have fewer than 2^31 values, got {checks.show(x)}")
    branches = weights.branches()
    means = mean(x, offset, stride)
    alpha, steps = alpha_and_steps(means, branches, weights)
    if folded:
        matrices, bias = fold(alpha, weights)
        y, _ = mix(x, offset, stride, matrices, steps, bias, weights, folded=True)
    else:
        y, _ = mix(x, offset, stride, branches, steps, shift(alpha, weights), weights, folded=False, project=True)
    return y.flatten(1, 2), means


def _image(x: Tensor, offset: Tensor) -> Tensor:
    """Tokens ``[B, N, C]`` as ``[B, H, W, C]``."""
    return x.unflatten(1, offset.shape[1:3])


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
    dy: Tensor, x: Tensor, offset: Tensor, means: Tensor, parameters: Weights, deterministic: bool
) -> tuple[Tensor, Tensor, Weights]:
    weights = parameters.to(x.dtype)
    folded = folds("token_mix_backward", _image(x, offset), offset.shape[3] // 2)
    if not runs_kernels(x):
        dx, doffset, dweights = plain.token_mix_backward(dy, x, offset, means, weights, folded)
    else:
        dx, doffset, dweights = _kernel_gradients(dy, x, offset, means, weights, folded, deterministic)
    return dx, doffset, Weights(*(t.to(p.dtype) for t, p in zip(dweights, parameters, strict=True)))


def _kernel_gradients(
    dy: Tensor, x: Tensor, offset: Tensor, means: Tensor, weights: Weights, folded: bool, deterministic: bool
) -> tuple[Tensor, Tensor, Weights]:
    dy, x, weights = _image(dy.contiguous(), offset), _image(x.contiguous(), offset), Weights(*(t.contiguous() for t in weights))
    offset, stride = token_stride(offset)
    branches = weights.branches()
    alpha, steps = alpha_and_steps(means, branches, weights)
    if folded:
        d = dy
        matrices, _ = fold(alpha, weights)
        made = products(d, x, offset, stride, alpha, folded=True)
        gradients = fold_backward(made, d.sum((1, 2), dtype=torch.float32), alpha, weights)
    else:
        matrices = branches
        rows = dy.flatten(0, 2)
        d = (rows @ weights.proj_weight).view(x.shape)
        fused, sums = mix(x, offset, stride, matrices, steps, shift(alpha, weights), weights, folded=False, d=d)
        dproj = (rows.mT @ fused.flatten(0, 2)).to(torch.float32)
        del fused
        made = products(d, x, offset, stride, alpha, folded=False)
        gradients = unfolded_backward(made, sums[:, :3], sums[:, 3], dproj, dy.sum((1, 2), dtype=torch.float32).sum(0), alpha, weights)
    dmeans, dweights = branch_weights_backward(gradients, alpha, means, weights)
    dmean = dmeans / max(x.shape[1] * x.shape[2], 1)
    dx, doffset = token_gradients(d, x, offset, stride, matrices, alpha, dmean, folded=folded, deterministic=deterministic)
    return dx.to(x.dtype).flatten(1, 2), doffset, dweights


def _setup_context(ctx, inputs, output):
    x, offset, *weights = inputs
    _, means = output
    ctx.mark_non_differentiable(means)
    ctx.save_for_backward(x, offset, means, *weights)


def _backward(ctx, dy, dmeans):
    return _token_mix_backward(dy, *ctx.saved_tensors, torch.are_deterministic_algorithms_enabled())


_token_mix.register_autograd(_backward, setup_context=_setup_context)


register_flop_formula(torch.ops.atm_triton.token_mix)(lambda x, *_, **__: flops.token_mix_flops(x))
register_flop_formula(torch.ops.atm_triton.token_mix_backward)(lambda dy, *_, **__: 2 * flops.token_mix_flops(dy))


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
    (x,) = checks.to_autocast(x)
    for name, t in weights._asdict().items():
        if checks.autocast_dtype(t) != x.dtype:
            raise TypeError(f"{op}: {name} must have x's dtype {x.dtype}, got {t.dtype}")
    # As [B, N, C]: plain.py says what Inductor makes of four dimensions.
    return _token_mix(x.flatten(1, 2), offset, *weights)[0].view(x.shape)
