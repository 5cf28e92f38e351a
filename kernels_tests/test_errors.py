"""Wrong input is refused with the shapes that were given."""

from __future__ import annotations

import pytest
import torch

from atm_triton import ActiveTokenMixer, OffsetFC, axial_gather, branch_fusion, offset_fc, token_mix
from atm_triton.algebra import Weights

X = torch.zeros(2, 3, 4, 6)
_FC, _BIAS = torch.zeros(6, 6), torch.zeros(6)
MIXER = Weights(_FC, _BIAS, _FC, _BIAS, _FC, torch.zeros(1, 6), torch.zeros(1), torch.zeros(18, 1), torch.zeros(18), _FC, _BIAS)
META = {name: t.to("meta") for name, t in MIXER._asdict().items() if t is not None}


def mix(x: torch.Tensor = X, offset: torch.Tensor = X, **weights: torch.Tensor) -> torch.Tensor:
    return token_mix(x, offset, *MIXER._replace(**weights))


CASES = {
    "mixer size": (
        lambda: mix(torch.empty(1, 2**16, 2**14, 6, device="meta"), torch.empty(1, 2**16, 2**14, 2, device="meta"), **META),
        ValueError,
        r"fewer than 2\^31 values, got x \[1, 65536, 16384, 6\] float32 on meta with 6 channels",
    ),
    "gather rank": (lambda: axial_gather(X[0, 0], X[0, 0], "w"), ValueError, r"x must be .*\[B, H, W, C\].*\[4, 6\]"),
    "gather groups": (
        lambda: axial_gather(X, X[..., :4], "w"),
        ValueError,
        r"4 offset channels must divide the 6 channels.*\[2, 3, 4, 6\].*\[2, 3, 4, 4\]",
    ),
    "gather no groups": (lambda: axial_gather(X, X[..., :0], "w"), ValueError, "0 offset channels must divide"),
    "gather offset size": (lambda: axial_gather(X, X[:, :, :3], "w"), ValueError, r"offset must be.*\[2, 3, 4, 6\].*\[2, 3, 3, 6\]"),
    "gather offset rank": (lambda: axial_gather(X, X[0], "w"), ValueError, r"offset must be.*\[3, 4, 6\]"),
    "gather axis": (lambda: axial_gather(X, X, "x"), ValueError, r"axis must be 'w'.*got 'x'"),
    "gather axis type": (lambda: axial_gather(X, X, 2), ValueError, "axis must be 'w'.*got 2"),
    "gather devices": (lambda: axial_gather(X, X.to("meta"), "w"), ValueError, "one device.*on cpu.*on meta"),
    "gather integer": (lambda: axial_gather(X.int(), X, "w"), TypeError, "x must be floating point.*int32"),
    "gather integer offset": (lambda: axial_gather(X, X.long(), "w"), TypeError, "offset must be floating point.*int64"),
    "fusion rank": (lambda: branch_fusion(*4 * [X[0, 0]]), ValueError, r"w must be .*\[B, H, W, C\]"),
    "fusion branch": (
        lambda: branch_fusion(X, X[:1], X, torch.zeros(2, 3, 6)),
        ValueError,
        r"h must be.*\[2, 3, 4, 6\], got \[1, 3, 4, 6\]",
    ),
    "fusion logits": (lambda: branch_fusion(X, X, X, torch.zeros(2, 6, 3)), ValueError, r"logits must be.*\[2, 3, 6\], got \[2, 6, 3\]"),
    "fusion dtypes": (
        lambda: branch_fusion(X, X.half(), X, torch.zeros(2, 3, 6)),
        TypeError,
        "one dtype, got w torch.float32, h torch.float16",
    ),
    "offset rank": (
        lambda: offset_fc(X[0, 0], *[torch.zeros(6)] * 2, torch.zeros(4, 6), torch.zeros(4)),
        ValueError,
        r"x must be .*\[B, H, W, C\]",
    ),
    "offset norm": (
        lambda: offset_fc(X, *[torch.zeros(5)] * 2, torch.zeros(4, 6), torch.zeros(4)),
        ValueError,
        r"norm_weight must be.*= \[6\], got \[5\]",
    ),
    "offset weight": (
        lambda: offset_fc(X, *[torch.zeros(6)] * 2, torch.zeros(6, 4), torch.zeros(4)),
        ValueError,
        r"weight must be \[O, C\].*got \[6, 4\]",
    ),
    "offset bias": (
        lambda: offset_fc(X, *[torch.zeros(6)] * 2, torch.zeros(4, 6), torch.zeros(6)),
        ValueError,
        r"bias must be.*\[4\], got \[6\]",
    ),
    "offset dtypes": (
        lambda: offset_fc(X.half(), *[torch.zeros(6)] * 2, torch.zeros(4, 6), torch.zeros(4)),
        TypeError,
        "x's dtype torch.float16, got torch.float32",
    ),
    "mix rank": (lambda: mix(X[0, 0], X[0, 0]), ValueError, r"token_mix: x must be .*\[B, H, W, C\].*\[4, 6\]"),
    "mix offset size": (lambda: mix(offset=X[:, :2]), ValueError, r"offset must be.*\[2, 3, 4, 6\].*\[2, 2, 4, 6\]"),
    "mix odd offsets": (lambda: mix(offset=X[..., :3]), ValueError, "the 3 offset channels must be 2 \\* G with G dividing the 6"),
    "mix groups": (lambda: mix(offset=X.repeat(1, 1, 1, 2)[..., :8]), ValueError, "the 8 offset channels must be.*dividing the 6"),
    "mix weight": (lambda: mix(weight_h=_FC[:5]), ValueError, r"weight_h must be.*\[6, 6\].*got \[5, 6\]"),
    "mix bottleneck": (lambda: mix(fc2_weight=torch.zeros(6, 3)), ValueError, r"fc2_weight must be.*\[18, 1\].*got \[6, 3\]"),
    "mix dtypes": (lambda: mix(proj_bias=_BIAS.half()), TypeError, "proj_bias must have x's dtype torch.float32, got torch.float16"),
    "mix devices": (lambda: mix(proj_bias=_BIAS.to("meta")), ValueError, "one device.*on cpu.*on meta"),
    "mixer share": (lambda: ActiveTokenMixer(6, share=4), ValueError, "dim=6, share=4"),
    "mixer dim": (lambda: ActiveTokenMixer(-8), ValueError, "dim must be a whole number of at least 1, got -8"),
    "mixer width": (lambda: ActiveTokenMixer(8, out_dim=0), ValueError, "out_dim must be a whole number of at least 1, got 0"),
    "mixer fraction": (lambda: ActiveTokenMixer(8.0), ValueError, "dim must be a whole number of at least 1, got 8.0"),
    "offset layer share": (lambda: OffsetFC(6, share=0), ValueError, "share must be a whole number of at least 1, got 0"),
    "mixer of maps": (lambda: ActiveTokenMixer(3)(X), ValueError, r"got \[2, 3, 4, 6\]: for .* there is ActiveTokenMixer2d"),
    "mixer channels": (lambda: ActiveTokenMixer(8)(X), ValueError, r"\[B, H, W, 8\].*\[2, 3, 4, 6\]"),
    "mixer offset": (lambda: ActiveTokenMixer(6, share=3)(X, X), ValueError, r"\[\.\.\., 4\] for dim=6, share=3, got \[2, 3, 4, 6\]"),
    "mixer without offset": (lambda: ActiveTokenMixer(6, own_offset=False)(X), ValueError, "own_offset=False"),
}


ALL = {
    "axial_gather": lambda x: axial_gather(x, X, "w"),
    "branch_fusion": lambda x: branch_fusion(x, X, X, torch.zeros(2, 3, 6)),
    "offset_fc": lambda x: offset_fc(x, *[torch.zeros(6)] * 2, torch.zeros(4, 6), torch.zeros(4)),
    "token_mix": lambda x: mix(x),
}
NO_TENSORS = {
    "none": (None, TypeError, "must be a torch.Tensor, got builtins.NoneType"),
    "list": ([1.0], TypeError, "must be a torch.Tensor, got builtins.list"),
    "numpy": (X.numpy(), TypeError, "must be a torch.Tensor, got numpy.ndarray"),
    "float8": (X.to(torch.float8_e4m3fn), TypeError, r"must be floating point, of 16 bits or more, got \[2, 3, 4, 6\] float8_e4m3fn"),
    "sparse": (X.to_sparse(), TypeError, "must be a dense tensor, got .* in layout torch.sparse_coo"),
    "empty": (X[..., :0], ValueError, r"must be .* of a channel or more, got \[2, 3, 4, 0\]"),
}


@pytest.mark.parametrize("operator", ALL)
@pytest.mark.parametrize("x", NO_TENSORS)
def test_what_no_operator_takes(operator, x):
    given, error, message = NO_TENSORS[x]
    with pytest.raises(error, match=f"{operator}: [xw] {message}"):
        ALL[operator](given)


@pytest.mark.parametrize("operator", ALL)
def test_what_is_not_differentiated(operator):
    with pytest.raises(NotImplementedError, match=f"{operator}: differentiation by torch.func is not implemented; use torch.autograd"):
        torch.func.grad(lambda x: ALL[operator](x).sum())(X)
    x = X.clone().requires_grad_()
    (dx,) = torch.autograd.grad(ALL[operator](x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{operator}: second derivatives are not implemented; .*reference.{operator}"):
        dx.sum().backward()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_wrong_input(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()
