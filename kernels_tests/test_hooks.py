"""Hooks on a mixer's layers fire, as do those by which other libraries prune, shard, offload and quantize."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.utils.parametrizations as parametrizations
from adapters import (
    COMPOSED,
    FUSED,
    LAYERS,
    SHAPE,
    close,
    double,
    make,
    on_every_layer,
    on_every_mixer,
    operators,
    put,
    step,
    train_alike,
)
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrize, prune, weight_norm


class DoubleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        return 2 * dx


class Doubled(nn.Module):
    """A layer as ``double`` makes it."""

    def __init__(self, layer: nn.Module, how: str) -> None:
        super().__init__()
        self.layer, self.how = layer, how

    def forward(self, x: Tensor) -> Tensor:
        before = {"forward pre": lambda x: 2 * x, "backward": DoubleGradient.apply}.get(self.how)
        after = {"forward": lambda y: 2 * y, "patched": lambda y: 2 * y, "backward pre": DoubleGradient.apply}.get(self.how)
        y = self.layer(before(x) if before else x)
        return after(y) if after else y


HOOKS = ["forward", "forward pre", "backward", "backward pre", "patched"]


@pytest.mark.parametrize("name", [*LAYERS, "logits"])
@pytest.mark.parametrize("how", HOOKS)
def test_hooks_fire_and_change_what_is_computed(how, name):
    mixer, x = make()
    expected = copy.deepcopy(mixer)
    put(expected, name, lambda layer: Doubled(layer, how))
    seen: list[Tensor] = []
    double(mixer.get_submodule(name), how, seen.append)
    assert operators(mixer, x) == COMPOSED
    seen.clear()
    close(step(mixer, x), step(expected, x))
    close([p.grad for p in mixer.parameters()], [p.grad for p in expected.parameters()])
    assert len(seen) == 1 and seen[0].shape[0] == SHAPE[0] and seen[0].any()


@on_every_mixer
def test_hooks_on_every_mixer_and_no_more(kind):
    mixer, x = make(kind)
    calls: list[str] = []
    handles = [mixer.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name)) for name in LAYERS]
    y = mixer(x)
    assert sorted(calls) == sorted(LAYERS)
    for handle in handles:
        handle.remove()
    assert operators(mixer, x) == FUSED and len(calls) == len(LAYERS)
    close(mixer(x), y)


class Mask(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def test_pruning_holds_while_weights_are_trained():
    mixer, x = make()
    expected = copy.deepcopy(mixer)
    for name in LAYERS:
        layer = mixer.get_submodule(name)
        prune.l1_unstructured(layer, "weight", 0.5)
        parametrize.register_parametrization(expected.get_submodule(name), "weight", Mask(layer.weight_mask))
    assert operators(mixer, x) == COMPOSED
    train_alike(mixer, expected, x)
    y = mixer(x)
    for name in LAYERS:
        layer = mixer.get_submodule(name)
        assert not layer.weight[layer.weight_mask == 0].any()
        prune.remove(layer, "weight")
    assert operators(mixer, x) == FUSED
    close(mixer(x), y)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_the_old_weight_norm_trains_as_the_new():
    mixer, x = make()
    expected = copy.deepcopy(mixer)
    for name in LAYERS:
        weight_norm(mixer.get_submodule(name))
        parametrizations.weight_norm(expected.get_submodule(name))
    assert operators(mixer, x) == COMPOSED and operators(expected, x) == FUSED
    train_alike(mixer, expected, x)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("names", [LAYERS, ["logits"], [*LAYERS, ""]], ids=["layers", "logits", "and the mixer"])
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module.*returned a view")
def test_sharded_layers(names, one_process):
    mixer, x = make()
    expected = copy.deepcopy(mixer)
    mesh = dist.init_device_mesh("cpu", (1,))
    for name in names:
        fully_shard(mixer.get_submodule(name), mesh=mesh)
    close(step(mixer, x), step(expected, x))
    full = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in mixer.parameters()]
    close(full, [p.grad for p in expected.parameters()])


def test_weights_kept_elsewhere_until_a_layer_is_called():
    """Hooks of Accelerate replace a layer's forward and bring its weights."""
    mixer, x = make()
    expected = mixer(x)
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(mixer, execution_device=torch.device("cpu"))
    assert mixer.fc_w.weight.is_meta
    with torch.no_grad():
        close(mixer(x), expected)


@pytest.mark.skipif(not hasattr(torch.ao, "quantization"), reason="torch has none")
@pytest.mark.filterwarnings("ignore")
@on_every_mixer
def test_dynamic_quantization(kind):
    mixer, x = make(kind)
    quantized = torch.ao.quantization.quantize_dynamic(mixer.eval(), {nn.Linear}, dtype=torch.qint8)
    assert operators(quantized, x) == COMPOSED
    with torch.no_grad():
        y, expected = quantized(x), mixer(x)
    assert 0 < (y - expected).norm() < 0.1 * expected.norm()


class Int8(Tensor):
    """A quantized weight as torchao has it: an exact nn.Linear multiplies it, and no other operator takes it."""

    @staticmethod
    def __new__(cls, values: Tensor, scale: Tensor) -> Tensor:
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        self.values_, self.scale = values, scale

    def __tensor_flatten__(self):
        return ["values_", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Int8(inner["values_"], inner["scale"])

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            x, weight, *bias = args
            return func(x, weight.values_ * weight.scale, *bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


@on_every_layer
def test_quantized_weights(name):
    mixer, x = make()
    y = mixer(x)
    layer = mixer.get_submodule(name)
    scale = layer.weight.detach().abs().max() / 127
    layer.weight = nn.Parameter(Int8((layer.weight.detach() / scale).round().to(torch.int8), scale), requires_grad=False)
    assert operators(mixer, x) == COMPOSED
    assert 0 < (mixer(x) - y).norm() < 0.1 * y.norm()
