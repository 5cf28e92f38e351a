"""Graphs as a GPU would run them: compiled on meta tensors, they hold the Triton kernels and nothing around them."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from triton.runtime.jit import JITFunction

from atm_triton import ActiveTokenMixer, ops
from atm_triton.testing import OPERATORS, Shape, gradients, make

MIXER = ("offset_fc", "token_mix")  # in its order


def capture(function, dynamic: bool) -> tuple:
    """``function`` compiled with fullgraph, and the list that its forward and backward graphs are appended to."""
    graphs: list[tuple[str, torch.fx.GraphModule]] = []

    def keep(kind):
        return lambda graph, inputs: (graphs.append((kind, graph)), make_boxed_func(graph.forward))[1]

    backend = aot_autograd(fw_compiler=keep("forward"), bw_compiler=keep("backward"))
    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend), graphs


def kernels(graph: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]


def written(graph: torch.fx.GraphModule) -> list[list[str]]:
    """The arguments that each kernel of the graph writes, as torch's own analysis of its code finds them."""
    return [node.kwargs["tensors_to_clone"] for node in kernels(graph)]


def meta_inputs(name: str, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty(size, dtype=dtype, device="meta").requires_grad_() for size in OPERATORS[name].inputs(shape).values())


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
@pytest.mark.parametrize("name", list(OPERATORS))
def test_the_kernels_are_in_the_graph_and_write_only_their_outputs(name, dynamic, deterministic):
    compiled, graphs = capture(OPERATORS[name].function, dynamic)
    torch.use_deterministic_algorithms(deterministic)
    compiled(*meta_inputs(name, Shape(2, 3, 5, 8, 2))).sum().backward()  # of few tokens, so that the mixer does not fold
    (_, forward), (_, backward) = graphs
    operator = OPERATORS[name]
    assert written(forward) == operator.writes
    assert written(backward) == ((deterministic and operator.writes_deterministic) or operator.writes_backward)


@pytest.mark.parametrize("name", list(OPERATORS))
def test_shapes_do_not_recompile(name):
    compiled, graphs = capture(OPERATORS[name].function, dynamic=True)
    # A batch of as many samples as there are branches would be taken for their number.
    for shape in (Shape(6, 5, 7, 8, 2), Shape(3, 16, 9, 8, 2), Shape(2, 100, 40, 8, 2), Shape(7, 3, 333, 8, 2), Shape(64, 56, 56, 8, 2)):
        compiled(*meta_inputs(name, shape)).sum().backward()
    assert [kind for kind, _ in graphs] == ["forward", "backward"]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_gathered_out_of_shared_memory(dynamic):
    """Two launches that fill the same tensors, in one graph for all sizes: right for any, though chosen for the first."""
    compiled, graphs = capture(OPERATORS["token_mix"].function, dynamic)
    for shape in (Shape(2, 20, 30, 4, 4), *((Shape(3, 17, 16, 4, 4), Shape(5, 9, 100, 4, 4)) if dynamic else ())):
        compiled(*meta_inputs("token_mix", shape)).sum().backward()
    assert len(graphs) == 2
    for _, graph in graphs:
        assert written(graph)[:2] == 2 * [["gathered_ptr", "partial_ptr"]]
        copies = [node for node in graph.graph.nodes if node.target in (torch.ops.aten.clone.default, torch.ops.aten.copy.default)]
        assert all(node.meta["val"].dim() < 5 for node in copies)  # of matrices and of the upstream gradient, but not of what is gathered


def test_the_mixer_is_kernels_and_products_without_copies():
    """Contiguous tokens stay where they are: no clone, no copy, no transposed token tensor around the kernels."""
    mixer = ActiveTokenMixer(32, share=2).to("meta", torch.bfloat16)
    compiled, graphs = capture(mixer, dynamic=False)
    compiled(torch.empty(2, 6, 10, 32, device="meta", dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    (_, forward), (_, backward) = graphs
    assert written(forward) == [kernel for name in MIXER for kernel in OPERATORS[name].writes]
    assert written(backward) == [kernel for name in reversed(MIXER) for kernel in OPERATORS[name].writes_backward]
    tokens = 2 * 6 * 10 * 32
    for _, graph in graphs:
        copies = [
            node
            for node in graph.graph.nodes
            if node.target in (torch.ops.aten.clone.default, torch.ops.aten.copy.default, torch.ops.aten._to_copy.default)
            and node.meta["val"].numel() >= tokens
            and node.meta["val"].dtype == node.args[0].meta["val"].dtype
        ]
        assert copies == []


# By channels, 32 of which are few enough to fold: of the forward and of the backward, kernels of ours, GEMMs and sums.
LAUNCHES = {32: ((4, 2, 1), (6, 20, 10)), 320: ((4, 4, 1), (7, 18, 9))}


@pytest.mark.parametrize("C", LAUNCHES)
def test_launches(C):
    """GEMMs of all tokens and small ones; Inductor joins pointwise operations and sums, so that only their number can fall."""
    shape = Shape(128, 14, 14, C // 2, 2)
    compiled, graphs = capture(OPERATORS["token_mix"].function, dynamic=False)
    compiled(*meta_inputs("token_mix", shape)).backward(torch.empty(shape.tokens, dtype=torch.bfloat16, device="meta"))
    aten = torch.ops.aten
    gemms = aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default
    counts = []
    for _, graph in graphs:
        targets = [node.target for node in graph.graph.nodes]
        counts.append((len(kernels(graph)), sum(map(targets.count, gemms)), targets.count(aten.sum.dim_IntList)))
    assert tuple(counts) == LAUNCHES[C]


def saved_bytes(function, *inputs: torch.Tensor) -> int:
    """Bytes that autograd keeps of one call besides parameters."""
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        if not isinstance(t, torch.nn.Parameter):
            kept[id(t)] = t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = function(*inputs)
    assert y.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(("C", "share", "side"), [(64, 2, 56), (128, 4, 28), (320, 4, 14), (512, 8, 7), (320, 4, 64)])
def test_the_mixer_saves_x_and_the_offsets_and_little_else(C, share, side):
    mixer = ActiveTokenMixer(C, share, own_offset=False).to("meta", torch.bfloat16)
    x = torch.empty(16, side, side, C, device="meta", dtype=torch.bfloat16, requires_grad=True)
    offset = torch.empty(16, side, side, 2 * C // share, device="meta", dtype=torch.bfloat16, requires_grad=True)
    saved = saved_bytes(mixer, x, offset)
    means = 16 * 3 * C * 4
    assert saved == x.nbytes + offset.nbytes + means <= 1.1 * (x.nbytes + offset.nbytes)


def test_under_autocast_the_mixer_saves_its_parameters_and_no_copies_of_them():
    mixer = ActiveTokenMixer(64, 2, own_offset=False)
    x, offset = torch.randn(2, 6, 10, 64, requires_grad=True), torch.randn(2, 6, 10, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        saved = saved_bytes(mixer, x, offset)
    assert saved == x.nbytes // 2 + offset.nbytes + 2 * 3 * 64 * 4


def test_meta_agrees_with_cpu_on_shapes_dtypes_and_strides():
    for name, operator in OPERATORS.items():
        shape = Shape(2, 5, 7, 6, 3)
        on_meta = meta_inputs(name, shape, torch.float32)
        y = operator.function(*on_meta)
        meta = y, *torch.autograd.grad(y, on_meta, torch.empty_like(y))
        cpu = gradients(operator.function, make(operator, shape, torch.float32, "cpu"))
        assert [(t.shape, t.dtype, t.stride()) for t in meta] == [(t.shape, t.dtype, t.stride()) for t in cpu]


def test_kernels_are_plain_jit_functions():
    """An autotuner or heuristic around a kernel would choose by the first shape that torch.compile sees."""
    for module in (import_module(found.name) for found in walk_packages(ops.__path__, f"{ops.__name__}.")):
        assert all(type(value) is JITFunction for name, value in vars(module).items() if name.endswith("_kernel")), module.__name__
