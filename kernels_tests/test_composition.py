"""Training of the mixer with activation checkpointing, DDP, FSDP2 and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
from cases import GPU, PATHS, Path, on_gpu
from test_graphs import capture
from torch import Tensor, nn
from torch._inductor.utils import get_first_incompatible_cudagraph_node
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from atm_triton import ActiveTokenMixer

SHAPE = (2, 5, 7, 8)
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)
on_every_path = pytest.mark.parametrize("path", PATHS, ids=str)


def make_mixer(path: Path) -> ActiveTokenMixer:
    torch.manual_seed(0)
    mixer = ActiveTokenMixer(SHAPE[-1], share=2)
    for p in mixer.parameters():
        nn.init.normal_(p, std=0.3)
    return mixer.to(path.device)


def step(module: nn.Module, function: Callable[[Tensor], Tensor], seed: int = 0) -> list[Tensor]:
    """The result of ``function``, and the gradients of its input and of the parameters of ``module``."""
    module.zero_grad()
    device = next(module.parameters()).device
    x, dy = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(2 * seed + i)).to(device) for i in range(2))
    y = function(x.requires_grad_())
    y.backward(dy.to(y.dtype))
    gradients = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in module.parameters()]
    return [t.detach().clone() for t in (y, x.grad, *gradients)]


@on_every_path
@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "compiled"])
def test_activation_checkpointing_keeps_the_input_alone_and_changes_nothing(how, path):
    mixer = make_mixer(path)
    function = partial(checkpoint, mixer, use_reentrant=how == "reentrant")
    if how == "compiled":
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    kept: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            return function(x)

    torch.use_deterministic_algorithms(True)
    with path.active():
        assert_equal(step(mixer, watched), step(mixer, mixer))
    assert [t.shape for t in kept if t.numel() and not isinstance(t, nn.Parameter)] == [SHAPE]  # torch 2.11 also keeps an empty one


@pytest.fixture
def one_process(path: Path) -> Iterator[None]:
    dist.init_process_group("nccl" if path is GPU else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def double(_, bucket):  # without annotations, which DDP cannot read where they are strings
    """Double what DDP does to gradients, so that it shows: the mean over one process would not."""
    return dist.all_reduce(bucket.buffer().mul_(2), async_op=True).get_future().then(lambda done: done.value()[0])


@on_every_path
@pytest.mark.parametrize("how", ["eager", "compiled inside", "compiled outside"])
def test_ddp(how, path, one_process):
    mixer = make_mixer(path)
    torch.use_deterministic_algorithms(True)
    with path.active():
        y, dx, *gradients = step(mixer, mixer)
        if how == "compiled inside":
            mixer.compile(fullgraph=True, backend="aot_eager")
        ddp = nn.parallel.DistributedDataParallel(mixer, gradient_as_bucket_view=True)
        ddp.register_comm_hook(None, double)
        function = torch.compile(ddp, backend="aot_eager") if how == "compiled outside" else ddp
        for _ in range(2):  # the second step complains if the first missed a parameter
            assert_equal(step(mixer, function), [y, dx, *(2 * gradient for gradient in gradients)])


@on_every_path
@pytest.mark.parametrize("how,dtype", [("eager", torch.float32), ("checkpointed", torch.bfloat16), ("compiled", torch.bfloat16)], ids=str)
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module.*returned a view")  # which is not written to here
def test_fsdp2(how, dtype, path, one_process):
    """Parameters in float32, gathered in ``dtype`` for the forward, and once more for the backward."""
    bare, sharded = nn.Sequential(make_mixer(path)), nn.Sequential(make_mixer(path))
    torch.use_deterministic_algorithms(True)
    with path.active():
        expected = step(bare.to(dtype), lambda x: bare(x.to(dtype)))
        if how == "compiled":
            sharded[0].compile(fullgraph=True, backend="aot_eager")
        for module in (sharded[0], sharded):
            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
            fully_shard(module, mesh=dist.init_device_mesh(path.device, (1,)), mp_policy=policy)
        function = sharded
        if how == "checkpointed":  # torch 2.11 casts x in the forward alone, not again in the backward

            def function(x: Tensor) -> Tensor:
                return checkpoint(sharded, x.to(dtype), use_reentrant=False)

        y, *gradients = step(sharded, function)
        assert all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in sharded.parameters())
    assert_equal([y, *gradients], [expected[0], *(t.float() for t in expected[1:])])


def not_recorded(graphs: list[tuple[str, torch.fx.GraphModule]]) -> list[str]:
    """Obstacles to CUDA graphs: the first node of each graph that torch cannot record, and tensors that are not on the device."""
    nodes = [node for _, graph in graphs for node in graph.graph.nodes]
    for node in nodes:
        if isinstance(node.meta.get("val"), dict):  # which torch 2.11 cannot read
            node.meta["val"] = tree_leaves(node.meta["val"])
    first = [node.name for _, graph in graphs if (node := get_first_incompatible_cudagraph_node(graph))]
    return first + [n.name for n in nodes if any(isinstance(t, Tensor) and not t.is_meta for t in tree_leaves(n.meta.get("val")))]


@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
def test_the_graphs_can_be_recorded(deterministic):
    torch.use_deterministic_algorithms(deterministic)
    compiled, graphs = capture(ActiveTokenMixer(SHAPE[-1], share=2).to("meta"), dynamic=False)
    compiled(torch.empty(SHAPE, device="meta", requires_grad=True)).sum().backward()
    assert len(graphs) == 2 and not_recorded(graphs) == []


def test_what_cannot_be_recorded_is_found():
    x = torch.empty(SHAPE, device="meta")
    compiled, graphs = capture(lambda x: x * torch.arange(2.0).sum(), dynamic=False)
    compiled(x)
    assert not_recorded(graphs) == ["arange", "sum_1"]
    compiled, graphs = capture(lambda x: x.nonzero() * 2, dynamic=False)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True), pytest.raises(NotImplementedError, match="nonzero"):
        compiled(x)  # the graph is there; meta tensors have nothing to run it on
    assert not_recorded(graphs) == ["nonzero"]


@pytest.mark.parametrize("path", [on_gpu], ids=str)
def test_cuda_graphs(path):
    mixer = make_mixer(path)
    compiled = torch.compile(mixer, fullgraph=True, mode="reduce-overhead")
    torch._dynamo.utils.counters.clear()
    with torch.profiler.profile() as profile:
        for seed in range(6):
            torch.compiler.cudagraph_mark_step_begin()
            torch.testing.assert_close(step(mixer, compiled, seed), step(mixer, mixer, seed), rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
    assert sum(event.count for event in profile.key_averages() if event.key.endswith("GraphLaunch")) >= 4  # of two graphs
