"""token_mix: the whole Active Token Mixer, in training and inference.

With g_w, g_h the tokens gathered along the two axes and g_c = x:

    s = mean over tokens of (FC_w g_w + FC_h g_h + FC_c g_c);   alpha = softmax over the branches of FC2(GELU(FC1 s))
    y = proj(alpha_w * FC_w g_w + alpha_h * FC_h g_h + alpha_c * FC_c g_c)

Sequences have no h, videos and volumes have a third axis, t, between h and c.

Gather once, then GEMMs. One pass gathers along all axes, writes what it gathered for the GEMMs, and adds it up: the mean commutes with the
FCs, so alpha follows of those sums alone, in two small kernels. Where a sample has many tokens for its channels, alpha and proj are folded
into matrices of that sample (algebra.py), for one GEMM kernel; elsewhere the FCs and proj are PyTorch's GEMMs, with the weighted sum
between them.

Backward: everything is gathered again; only x, the offsets, the means and the weights as they are given are saved. The GEMMs are PyTorch's
(plain.py). The gradient of x is summed up line by line in a fixed order, or, on long lines, where that is more work, atomically.

One file a step: gather.py or gather_lines.py, alpha.py, fold.py or fuse.py, scatter.py; launch.py says how they are launched.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import flops, plain, reference
from ..._triton import OPS, refuse_second_derivative, register_flop_formula, runs_kernels, triton_op
from ...algebra import Weights, branch_weights_backward, fold
from ...axes import axes_of
from .. import checks
from . import launch, strategy
from .launch import candidates

__all__ = ["KERNELS", "candidates", "token_mix"]
KERNELS = {
    "token_mix": (
        "token_mix",
        "token_mix_gather",
        "token_mix_gather_lines",
        "token_mix_pooled",
        "token_mix_alpha",
        "token_mix_fold",
        "token_mix_fuse",
    ),
    "token_mix_backward": (
        "token_mix_backward",
        "token_mix_gather",
        "token_mix_gather_lines",
        "token_mix_pooled",
        "token_mix_alpha",
        "token_mix_fuse_backward",
        "token_mix_doffset",
        "token_mix_dx",
    ),
}


@triton_op("token_mix")
def _token_mix(
    x: Tensor,
    offset: Tensor,
    weight_w: Tensor,
    bias_w: Tensor,
    weight_h: Tensor | None,
    bias_h: Tensor | None,
    weight_c: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    weight_t: Tensor | None,
    bias_t: Tensor | None,
) -> tuple[Tensor, Tensor]:
    along, bottleneck = (weight_w, bias_w, weight_h, bias_h), (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    weights = Weights(*along, weight_c, *bottleneck, proj_weight, proj_bias, weight_t, bias_t)
    with checks.autocast_off(x):
        return _forward(x, offset, weights)


def _forward(x: Tensor, offset: Tensor, parameters: Weights) -> tuple[Tensor, Tensor]:
    """y and the means. The parameters are cast here, so that autograd keeps them and no copies under autocast."""
    weights = parameters.to(x.dtype)
    groups = _groups(offset)
    folded = launch.has("FOLD", "token_mix", _placed(x, offset), groups)
    if not runs_kernels(x):
        return plain.token_mix_forward(x, offset, weights, folded)
    x, weights = _placed(x.contiguous(), offset), weights.map(Tensor.contiguous)
    gathered, means = launch.gather(x, offset, launch.has("SHARED", "token_mix", x, groups))
    _, alpha = launch.alpha(means, weights.branches(), weights)
    if folded:
        y = launch.fold(gathered, x, groups, *fold(alpha, weights))
    else:
        branches = plain.branches([*gathered.unbind(0), x], weights)
        del gathered  # as large as two of them
        fused = launch.fuse(branches, alpha, weights)
        del branches
        y = F.linear(fused, weights.proj_weight, weights.proj_bias)
    return y.flatten(1, -2), means


def _placed(x: Tensor, offset: Tensor) -> Tensor:
    """Tokens ``[B, N, C]`` as ``[B, *axes, C]``."""
    return x.unflatten(1, offset.shape[1:-1])


def _groups(offset: Tensor) -> int:
    """Offset channels per axis."""
    return offset.shape[-1] // (offset.ndim - 2)


@triton_op("token_mix_backward")
def _token_mix_backward(
    dy: Tensor,
    x: Tensor,
    offset: Tensor,
    means: Tensor,
    weight_w: Tensor,
    bias_w: Tensor,
    weight_h: Tensor | None,
    bias_h: Tensor | None,
    weight_c: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    weight_t: Tensor | None,
    bias_t: Tensor | None,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    along, bottleneck = (weight_w, bias_w, weight_h, bias_h), (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    weights = Weights(*along, weight_c, *bottleneck, proj_weight, proj_bias, weight_t, bias_t)
    with checks.autocast_off(x):
        dx, doffset, dweights = _gradients(dy, x, offset, means, weights, deterministic)
        # An operator cannot return None.
        return dx, doffset, *(x.new_empty(0) if t is None else t for t in dweights)  # type: ignore[return-value]


def _gradients(
    dy: Tensor, x: Tensor, offset: Tensor, means: Tensor, parameters: Weights, deterministic: bool
) -> tuple[Tensor, Tensor, Weights]:
    weights = parameters.to(x.dtype)
    folded = launch.has("FOLD", "token_mix_backward", _placed(x, offset), _groups(offset))
    if not runs_kernels(x):
        dx, doffset, dweights = plain.token_mix_backward(dy, x, offset, means, weights, folded)
    else:
        dx, doffset, dweights = _kernel_gradients(dy, x, offset, means, weights, folded, deterministic)
    cast = [p if t is None or p is None else t.to(p.dtype) for t, p in zip(dweights, parameters, strict=True)]
    return dx, doffset, Weights(*cast)  # type: ignore[arg-type]


def _kernel_gradients(
    dy: Tensor, x: Tensor, offset: Tensor, means: Tensor, weights: Weights, folded: bool, deterministic: bool
) -> tuple[Tensor, Tensor, Weights]:
    dy, x, weights = dy.contiguous(), x.contiguous(), weights.map(Tensor.contiguous)
    placed = _placed(x, offset)
    shared = launch.has("SHARED", "token_mix_backward", placed, _groups(offset))
    gathered, _ = launch.gather(placed, offset, shared)
    s, alpha = launch.alpha(means, weights.branches(), weights)
    tokens = [*gathered.flatten(2, -2).unbind(0), x]
    if folded:
        gradients, dgathered = plain.folded_gradients(dy, tokens, alpha, weights)
    else:
        d = _placed(dy @ weights.proj_weight, offset)
        dbranches, fused, sums = launch.fuse_backward(d, plain.branches([*gathered.unbind(0), placed], weights), alpha, weights)
        del d
        dbranches, fused = [t.flatten(1, -2) for t in dbranches], fused.flatten(1, -2)
        gradients, dgathered = plain.unfolded_gradients(dy, dbranches, fused, sums[:, :-1], sums[:, -1], tokens, alpha, weights)
        del dbranches, fused
    del gathered, tokens
    dmeans, dweights = branch_weights_backward(gradients, alpha, s, means, weights)
    dmean = dmeans / max(x.shape[1], 1)
    dx, doffset = launch.scatter([_placed(t, offset) for t in dgathered], placed, offset, dmean, deterministic=deterministic)
    return dx.flatten(1, -2), doffset, dweights


def _setup_context(ctx, inputs, output):
    x, offset, *weights = inputs
    _, means = output
    ctx.mark_non_differentiable(means)
    ctx.save_for_backward(x, offset, means, *weights)


def _backward(ctx, dy, dmeans):
    x, offset, means, *weights = ctx.saved_tensors  # once: under checkpointing, each look computes them again
    gradients = _token_mix_backward(dy, x, offset, means, *weights, torch.are_deterministic_algorithms_enabled())
    return tuple(None if t is None else gradient for t, gradient in zip((x, offset, *weights), gradients, strict=True))


_token_mix.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivative(_token_mix_backward)


register_flop_formula(OPS.token_mix)(
    flops.Formula(
        macs=lambda x, offset, weight_w, *_, **__: flops.token_mix_macs(x, weight_w[0], len(offset) - 2),
        per_value=lambda x, offset, weight_w, *_, **__: flops.token_mix_per_value(x, weight_w[0], len(offset) - 2),
    )
)
register_flop_formula(OPS.token_mix_backward)(
    flops.Formula(
        macs=lambda dy, x, offset, *_, **__: 2 * flops.token_mix_macs(x, dy[-1], len(offset) - 2),
        per_value=lambda dy, x, offset, *_, **__: 2 * flops.token_mix_per_value(x, dy[-1], len(offset) - 2),
    )
)


def token_mix(
    x: Tensor,
    offset: Tensor,
    weight_w: Tensor,
    bias_w: Tensor,
    weight_h: Tensor | None,
    bias_h: Tensor | None,
    weight_c: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    weight_t: Tensor | None = None,
    bias_t: Tensor | None = None,
) -> Tensor:
    """The Active Token Mixer in one operator: gather along every axis, weigh, project (paper, section 3.2).

    Args:
        x: Tokens ``[B, H, W, C]``, any strides; of sequences ``[B, W, C]``, of videos and volumes ``[B, T, H, W, C]``.
        offset: ``[B, H, W, 2 * G]`` in tokens, G dividing C: the first G along W, the last G along H. Its dtype may differ; autocast
            leaves it. Sequences have the first G alone, ``[B, W, G]``, videos G more along T, ``[B, T, H, W, 3 * G]``.
        weight_w, bias_w, weight_h, bias_h, weight_c: FCs of the tokens gathered along W and along H, and of the tokens themselves,
            ``[O, C]`` and ``[O]``, with O output channels. Of sequences, those of H are None.
        fc1_weight, fc1_bias, fc2_weight, fc2_bias: The bottleneck that makes the fusion's weights of the branches' mean: ``[F, O]``,
            ``[F]``, ``[K * O, F]`` and ``[K * O]``, with F = bottleneck(O) and K branches, 3 of images; its outputs are read as ``[O, K]``,
            order w, h, t, c.
        proj_weight, proj_bias: The projection of the fused tokens, ``[O, O]`` and ``[O]``.
        weight_t, bias_t: Of videos and volumes, the FC of the tokens gathered along T.

    Returns:
        ``[B, *axes, O]`` in x's dtype (autocast's, where it is on); positions, means and the fusion's weights are computed in float32
        (float64 for float64 input).

    All tokens of a sample count in its means: of sequences and videos of unlike length, mix those of one length at a time.

    A graph that is being compiled takes plain PyTorch instead where that is faster (strategy.py); it then keeps more for its backward.

    On a GPU, the gradient of x may be added up in any order, unless ``torch.use_deterministic_algorithms(True)``, when its order is fixed.

    Raises:
        ValueError: a shape that does not fit, or tensors on different devices.
        TypeError: what is no dense tensor of floating point, or weights of another dtype than x.
    """
    op = "token_mix"
    along, bottleneck = (weight_w, bias_w, weight_h, bias_h), (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    weights = Weights(*along, weight_c, *bottleneck, proj_weight, proj_bias, weight_t, bias_t)
    checks.tensors(op, x=x, offset=offset, **_given(weights))
    checks.tokens(op, "x", x)
    axes = axes_of(x)
    _check_axes(axes, x, weights)
    *shape, C = x.shape
    if offset.ndim != x.ndim or offset.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"{op}: offset must be x's [B, *axes] and {len(axes)} * G offset channels, of x {checks.show(x)}, got {checks.show(offset)}"
        )
    G = offset.shape[-1] // len(axes)
    if G == 0 or offset.shape[-1] % len(axes) or C % G:
        raise ValueError(
            f"{op}: the {offset.shape[-1]} offset channels must be {len(axes)} * G with G dividing the {C} channels of x, "
            f"got x {checks.show(x)}, offset {checks.show(offset)}"
        )
    _check_weights(weights, C, len(axes) + 1)
    (x,) = checks.to_autocast(x)
    for name, t in _given(weights).items():
        if checks.autocast_dtype(t) != x.dtype:
            raise TypeError(f"{op}: {name} must have x's dtype {x.dtype}, got {t.dtype}")
    if strategy.is_plain_faster(x, G):
        with checks.autocast_off(x):
            return plain.token_mix(x, offset, *weights.to(x.dtype))
    # As [B, N, C]: plain.py says what Inductor makes of four dimensions.
    return _token_mix(x.flatten(1, -2), offset, *weights)[0].view(*shape, weights.proj_bias.shape[0])


def _given(weights: Weights) -> dict[str, Tensor]:
    """Those that there are, and those that there must be."""
    return {name: t for name, t in weights._asdict().items() if t is not None or name[-2:] not in ("_h", "_t")}


def _check_axes(axes: str, x: Tensor, weights: Weights) -> None:
    for name in ("weight_h", "bias_h", "weight_t", "bias_t"):
        there = getattr(weights, name) is not None
        if there != (name[-1] in axes):
            what = "None" if there else "given"
            raise ValueError(f"token_mix: {name} must be {what} for tokens with the axes {', '.join(axes)}, x {checks.show(x)}")


def _check_weights(weights: Weights, C: int, branches: int) -> None:
    O = weights.proj_bias.shape[0] if weights.proj_bias.ndim == 1 else C  # noqa: E741
    hidden = reference.bottleneck(O)
    shapes = {"fc1_weight": (hidden, O), "fc1_bias": (hidden,), "fc2_weight": (branches * O, hidden), "fc2_bias": (branches * O,)}
    shapes |= {"proj_weight": (O, O), "proj_bias": (O,)}
    for name, t in _given(weights).items():
        expected = shapes.get(name) or ((O, C) if name.startswith("weight") else (O,))
        checks.shape("token_mix", name, t, expected, f"of that size for {C} channels of x and the {O} of proj_bias")
