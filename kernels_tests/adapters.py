"""Mixers, an adapter, and which operators are called: shared by the tests of adapters and of hooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import PATHS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from atm_triton import ActiveTokenMixer, ActiveTokenMixer2d
from atm_triton.swapping.layers import GridMixer

SHAPE = (2, 5, 7, 8)  # large enough for the operator when compiled for a CPU
LAYERS = ["fc_w", "fc_h", "fc_c", "proj", "logits.fc1", "logits.fc2"]
MIXERS = {
    "tokens": (lambda: ActiveTokenMixer(8, share=2), SHAPE),
    "maps": (lambda: ActiveTokenMixer2d(8, share=2), (2, 8, 5, 7)),
    "grid": (lambda: GridMixer(8, 2, (5, 7), 1), (2, 36, 8)),
}
FUSED, COMPOSED = {"offset_fc", "token_mix"}, {"offset_fc", "axial_gather", "branch_fusion"}

on_every_path = pytest.mark.parametrize("path", PATHS, ids=str)
on_every_layer = pytest.mark.parametrize("name", LAYERS)
on_every_mixer = pytest.mark.parametrize("kind", MIXERS)
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


class LoRA(nn.Module):
    """An adapter that has no weight to be read."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / 2)
        self.b = nn.Parameter(torch.randn(base.out_features, rank) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


class Operators(TorchDispatchMode):
    """The names of this library's operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "atm_triton":
            self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def operators(function: Callable[..., Tensor], *inputs: Tensor) -> set[str]:
    with torch.no_grad(), Operators() as called:
        function(*inputs)
    return called.names


def record(function: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], list[set[str]]]:
    """Compile whole, and tell which operators of this library each of the graphs has."""
    graphs: list[set[str]] = []

    def backend(graph: torch.fx.GraphModule, _) -> Callable[..., Tensor]:
        names = [str(node.target) for node in graph.graph.nodes]
        graphs.append({name.split(".")[1] for name in names if name.startswith("atm_triton.")})
        return graph.forward

    return torch.compile(function, fullgraph=True, backend=backend), graphs


def make(kind: str = "tokens") -> tuple[ActiveTokenMixer, Tensor]:
    """A mixer away from its initial values, and its input."""
    torch.manual_seed(0)
    build, shape = MIXERS[kind]
    mixer = build()
    for p in mixer.parameters():
        nn.init.normal_(p, std=0.5)
    return mixer, torch.randn(shape)


def step(mixer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The result and the gradient of x; those of the parameters are theirs."""
    mixer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = mixer(x)
    y.backward(torch.linspace(-1, 2, y.numel(), device=y.device).view(y.shape))
    return y.detach(), x.grad


def put(mixer: nn.Module, name: str, make_adapter: Callable[[nn.Module], nn.Module]) -> nn.Module:
    adapter = make_adapter(mixer.get_submodule(name))
    mixer.set_submodule(name, adapter)
    return adapter


def train_alike(first: nn.Module, second: nn.Module, x: Tensor) -> None:
    """Two updates of two mixers, and what they compute and send back then."""
    for mixer in (first, second):
        optimizer = torch.optim.SGD(mixer.parameters(), lr=0.01)
        for _ in range(2):
            step(mixer, x)
            optimizer.step()
    close(step(first, x), step(second, x))


def double(layer: nn.Module, how: str, saw: Callable[[Tensor], object] = lambda value: None) -> None:
    """Hooks on a layer, or a forward of its own, that double what they see."""

    def twice(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        saw(values[0])
        return (2 * values[0],)

    {
        "forward": lambda: layer.register_forward_hook(lambda module, inputs, output: twice((output,))[0]),
        "forward pre": lambda: layer.register_forward_pre_hook(lambda module, inputs: twice(inputs)),
        "backward": lambda: layer.register_full_backward_hook(lambda module, dx, dy: twice(dx)),
        "backward pre": lambda: layer.register_full_backward_pre_hook(lambda module, dy: twice(dy)),
        "patched": lambda: setattr(layer, "forward", lambda x, forward=layer.forward: twice((forward(x),))[0]),
    }[how]()
