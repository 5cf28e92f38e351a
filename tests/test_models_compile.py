"""ATMNet and other backbones under torch.compile: whole graphs, few compilations, the kernels in them."""

from __future__ import annotations

import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import timm
import torch
from atmnet import ATMNet
from atmnet.dense.backbone import Backbone
from functorch.compile import make_boxed_func
from test_backbone import SMALL, SWIN, SWINS
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.utils import run_and_get_code

# Compiling costs by the block. All four stages, and a block of each kind: the last of the third stage takes over the offsets of the first.
SHORT = dict(depths=(1, 1, 2, 1))

# Whether what is pooled has an even or an odd number of rows decides there about the graph.
pools_by_parity = pytest.mark.skipif(torch.__version__.startswith("2.11."), reason="torch 2.11 compiles pooling for each parity")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    torch.manual_seed(0)


class Compiled:
    """The model compiled whole by ``backend``, counting compilations."""

    def __init__(self, model: nn.Module, backend: str) -> None:
        self.compilations = 0
        self.backend = backend
        self.compiled = torch.compile(model, fullgraph=True, backend=self.compile)

    def compile(self, graph, inputs):
        self.compilations += 1
        return torch._dynamo.lookup_backend(self.backend)(graph, inputs)

    def __call__(self, x):
        return self.compiled(x)


def twelve_sizes(smallest: int = 40, largest: int = 200) -> list[tuple[int, int]]:
    draw = random.Random(0)
    return [(draw.randint(smallest, largest), draw.randint(smallest, largest)) for _ in range(12)]


# Sizes pass through two stages as through four.
TWO_STAGES = dict(depths=(1, 1), dims=(64, 128), mlp_ratios=(4, 4), share=(2, 4))


def test_twelve_sizes_take_two_compilations_in_training():
    model = timm.create_model("atmnet_xt", features_only=True, out_indices=(0, 1), drop_path_rate=0.1, **TWO_STAGES).train()
    compiled = Compiled(model, "aot_eager")
    for height, width in twelve_sizes():
        maps = compiled(torch.randn(2, 3, height, width))
        assert [y.shape[2] for y in maps] == [(height + 1) // 4, (height + 5) // 8]
        sum(y.square().sum() for y in maps).backward()
    assert compiled.compilations <= 2


def test_twelve_sizes_take_two_compilations_in_evaluation():
    """Sizes lie on both sides of each choice of convolutions that PyTorch would make by size, on CPU, at batch 1."""
    model = timm.create_model("atmnet_xt", num_classes=10, **TWO_STAGES).eval()
    compiled = Compiled(model, "aot_eager")
    with torch.no_grad():
        for height, width in twelve_sizes():
            x = torch.randn(1, 3, height, width)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    assert compiled.compilations <= 2


@pytest.mark.parametrize(
    ("name", "sizes", "most"),
    [
        pytest.param("test_resnet", (40, 200), 2, marks=pools_by_parity),
        ("test_convnext", (64, 200), 2),
        pytest.param("test_convnext", (40, 200), 3, marks=pytest.mark.exhaustive),
        pytest.param("pvt_v2_b0", (64, 200), 2, marks=pytest.mark.exhaustive),
        (SWIN, (240, 400), 2),
        pytest.param("swinv2_tiny_window8_256", (288, 480), 2, marks=pytest.mark.exhaustive),
        pytest.param(SWIN, (40, 200), 6, marks=pytest.mark.exhaustive),  # as many as when images were padded
    ],
)
@torch.no_grad()
def test_twelve_sizes_of_other_backbones_take_few_compilations(name, sizes, most):
    """Two. A map of one row or column is compiled for itself, and a Swin's of one window: small images have them."""
    backbone = Backbone(name, **SMALL[name] | (dict(depths=(2, 1, 1, 1)) if name in SWINS else {})).eval()
    compiled = Compiled(backbone, "eager")
    for height, width in twelve_sizes(*sizes):
        x = torch.randn(2, 3, height, width)
        for y, expected in zip(compiled(x), backbone(x), strict=True):
            torch.testing.assert_close(y, expected)
    assert compiled.compilations <= most


def test_batches_take_two_compilations():
    compiled = Compiled(ATMNet(depths=(1, 1), dims=(16, 32), mlp_ratios=(2, 2), share=(2, 4)).eval(), "aot_eager")
    with torch.no_grad():
        for batch in (4, 2, 3, 9):
            compiled(torch.randn(batch, 3, 64, 48))
    assert compiled.compilations <= 2


@pytest.mark.parametrize("train", [True, False])
def test_inductor_stores_tokens_contiguously(train, monkeypatch):
    """Inductor takes four dimensions before a convolution for NCHW, and a token's channels must not end up far apart by that."""
    # What is read is the code between the loops of C++: compiling those takes four fifths of the time, and they need not run.
    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", lambda *_: lambda *_: None)
    model = ATMNet(num_classes=5, depths=(2, 1), dims=(48, 80), mlp_ratios=(2, 2), share=(2, 4)).train(train)

    def step():
        with torch.set_grad_enabled(train):
            y = torch.compile(model, fullgraph=True)(torch.randn(2, 3, 32, 40))
        if train:
            y.sum().backward()

    _, codes = run_and_get_code(step)
    assert len(codes) == 1 + train
    stored = {
        match
        for code in codes
        for match in re.findall(r"(?:empty_strided_cpu|reinterpret_tensor)\((?:\w+, )?\(([^)]*)\), \(([^)]*)\)", code)
    }
    shapes = [[[int(n) for n in t.split(",") if n.strip()] for t in pair] for pair in stored]
    tokens = [(size, stride) for size, stride in shapes if size in ([2, 8, 10, 48], [2, 80, 48], [2, 4, 5, 80], [2, 20, 80])]
    assert tokens and all(stride[-1] == 1 for _, stride in tokens), tokens


@pytest.mark.exhaustive  # a minute of C++
def test_inductor_agrees_with_eager():
    """A small ATMNet of two stages; batch 2 in training, batch 1, which downsamples in its own way on CPU, in evaluation."""
    model = ATMNet(num_classes=5, depths=(1, 1), dims=(16, 32), mlp_ratios=(2, 2), share=(2, 4))
    compiled = Compiled(model, "inductor")
    x = torch.randn(2, 3, 33, 40)
    expected = model(x)
    gradients = torch.autograd.grad(expected.square().sum(), model.parameters())
    actual = compiled(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(torch.autograd.grad(actual.square().sum(), model.parameters()), gradients, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-7
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x[:1]), model(x[:1]), rtol=1e-4, atol=1e-5)
    assert compiled.compilations == 2


COPIES = (torch.ops.aten.clone.default, torch.ops.aten.copy.default)


@pytest.fixture
def target():
    """A GPU for torch to analyse the kernels for, where there is none."""
    triton = pytest.importorskip("triton")
    if not torch.cuda.is_available():
        sm_90 = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: sm_90, get_current_device=lambda: 0))


def kernels(graph: torch.fx.GraphModule) -> Counter[str]:
    """Number of times that the graph runs each Triton kernel."""
    names: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if "triton_kernel_wrapper" in str(node.target):
            kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            names[getattr(kernel, "base_fn", kernel.fn).__name__] += 1  # torch wraps a kernel and its num_warps up as an autotuner
    return names


def test_the_kernels_are_in_the_graph(target):
    """Graphs for a GPU, looked at on meta tensors: every operator as its kernel, forward and backward, and no token copied for it."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    model = timm.create_model("atmnet_xt", device="meta", dtype=torch.bfloat16, **SHORT).eval()  # without dropout
    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    compiled(torch.empty(2, 3, 48, 64, device="meta", dtype=torch.bfloat16)).sum().backward()
    forward, backward = graphs

    blocks, offsets = 1 + 1 + 2 + 1, 1 + 1 + 1 + 1
    assert kernels(forward) == {
        "_offset_fc_fwd_kernel": offsets,
        "_token_mix_gather_kernel": blocks,
        "_token_mix_pooled_kernel": blocks,
        "_token_mix_alpha_kernel": blocks,
        "_token_mix_fuse_kernel": blocks,  # none of these samples has tokens enough to be folded
    }
    assert kernels(backward) == {
        "_offset_fc_dx_kernel": offsets,
        "_offset_fc_dw_kernel": offsets,
        "_token_mix_gather_kernel": blocks,
        "_token_mix_pooled_kernel": blocks,
        "_token_mix_alpha_kernel": blocks,
        "_token_mix_fuse_backward_kernel": blocks,
        "_token_mix_doffset_kernel": blocks,
        "_token_mix_dx_kernel": 2 * blocks,
    }
    # On meta tensors convolutions give NCHW: each of the four between stages is put in order once, and hands that order back to the stage
    # before it. Nothing else moves tokens, and no kernel makes copies around itself.
    copies = [node for node in forward.graph.nodes if node.target in COPIES and node.meta["val"].ndim == 4]
    assert [node.args[0].args[0].target for node in copies] == [torch.ops.aten.convolution.default] * 4
    last_stage = torch.Size([2, 2, 2, 512])
    assert [node.format_node() for node in backward.graph.nodes if node.target in COPIES and node.meta["val"].shape == last_stage] == []
