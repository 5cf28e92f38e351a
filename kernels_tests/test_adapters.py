"""Adapters in place of a mixer's layers are called; the operator reads plain and parametrized ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
from adapters import (
    COMPOSED,
    FUSED,
    LAYERS,
    SHAPE,
    LoRA,
    close,
    double,
    make,
    on_every_layer,
    on_every_mixer,
    on_every_path,
    operators,
    put,
    record,
    step,
    train_alike,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from atm_triton import ActiveTokenMixer


class LoRAWeight(nn.Module):
    """The same as a parametrization."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


class LoRALinear(nn.Linear):
    """The same as a class of Linear, as in loralib."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None)
        self.load_state_dict(base.state_dict())
        self.a, self.b = nn.Parameter(torch.randn(2, base.in_features)), nn.Parameter(torch.randn(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.a.T @ self.b.T


def merged(mixer: nn.Module, *names: str) -> nn.Module:
    """A copy with plain layers that compute what its adapters do."""
    mixer = copy.deepcopy(mixer)
    for name in names:
        adapter = mixer.get_submodule(name)
        base = adapter.base
        with torch.no_grad():
            base.weight += adapter.b @ adapter.a
        mixer.set_submodule(name, base)
    return mixer


def assert_as_merged(mixer: nn.Module, x: Tensor, *names: str) -> None:
    expected = merged(mixer, *names)
    assert operators(mixer, x) == COMPOSED and operators(expected, x) == FUSED
    close(step(mixer, x), step(expected, x))
    for name in names:
        adapter, layer = mixer.get_submodule(name), expected.get_submodule(name)
        close(adapter.a.grad, adapter.b.T @ layer.weight.grad)
        close(adapter.b.grad, layer.weight.grad @ adapter.a.T)
        assert adapter.a.grad.abs().max() > 1e-3
        close([p.grad for p in adapter.base.parameters()], [p.grad for p in layer.parameters()])


@on_every_layer
def test_an_adapter_computes_and_trains_as_its_merged_weight(name):
    mixer, x = make()
    y = mixer(x)
    put(mixer, name, LoRA)
    assert_as_merged(mixer, x, name)
    assert (mixer(x) - y).abs().max() > 1e-2


def adapted(kind: str = "tokens") -> tuple[ActiveTokenMixer, Tensor]:
    mixer, x = make(kind)
    for name in LAYERS:
        put(mixer, name, LoRA)
    return mixer, x


@on_every_path
def test_adapters_on_every_path(path):
    mixer, x = adapted()
    with path.active():
        assert_as_merged(mixer.to(path.device), x.to(path.device), *LAYERS)


@on_every_mixer
def test_adapters_on_every_mixer(kind):
    assert_as_merged(*adapted(kind), *LAYERS)


@on_every_layer
def test_a_class_of_linear_is_called(name):
    mixer, x = make()
    adapter = put(mixer, name, LoRALinear)
    assert operators(mixer, x) == COMPOSED
    y, _ = step(mixer, x)
    assert adapter.a.grad.any() and adapter.b.grad.any()
    with torch.no_grad():
        adapter.weight += adapter.b @ adapter.a
        adapter.b.zero_()
    close(mixer(x), y)


@on_every_layer
def test_a_parametrized_layer_stays_fast(name):
    mixer, x = make()
    parametrized = copy.deepcopy(mixer)
    adapter = put(mixer, name, LoRA)
    layer = parametrized.get_submodule(name)
    parametrize.register_parametrization(layer, "weight", LoRAWeight(adapter.a.data.clone(), adapter.b.data.clone()))
    assert operators(parametrized, x) == FUSED
    close(step(parametrized, x), step(mixer, x))
    close([p.grad for p in layer.parametrizations.weight[0].parameters()], [adapter.a.grad, adapter.b.grad])
    parametrize.remove_parametrizations(layer, "weight")
    assert operators(parametrized, x) == FUSED
    close(parametrized(x), mixer(x))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm], ids=lambda norm: norm.__name__)
def test_norms_by_parametrization_train_as_if_called(norm):
    mixer, x = make()
    for name in LAYERS:
        norm(mixer.get_submodule(name))
    called = copy.deepcopy(mixer)
    for name in LAYERS:
        called.get_submodule(name).register_forward_hook(lambda *_: None)
    assert operators(copy.deepcopy(mixer), x) == FUSED and operators(copy.deepcopy(called), x) == COMPOSED
    train_alike(mixer, called, x)


@pytest.mark.parametrize("name", [*LAYERS, "logits"])
def test_other_layers_in_their_places(name):
    """Layers without a bias, with one more, of another class: each is what it computes."""
    mixer, x = make()
    expected = mixer(x)
    put(mixer, name, nn.Sequential)
    assert operators(mixer, x) == COMPOSED
    close(mixer(x), expected)


def test_biases_that_come_and_go():
    mixer, x = make()
    mixer.fc_c = nn.Linear(8, 8)
    assert operators(mixer, x) == COMPOSED
    step(mixer, x)
    assert mixer.fc_c.bias.grad.any()
    for name in LAYERS:
        layer = mixer.get_submodule(name)
        layer.bias = None
    assert operators(mixer, x) == FUSED
    y = step(mixer, x)
    put(mixer, "proj", nn.Sequential)
    close(y, step(mixer, x))


def test_what_predicts_offsets_is_called():
    mixer, x = make()
    parametrize.register_parametrization(mixer.offset, "weight", LoRAWeight(torch.randn(2, 8), torch.randn(8, 2)))
    expected = mixer(x)
    assert operators(mixer, x) == FUSED
    step(mixer, x)
    assert all(p.grad.any() for p in mixer.offset.parameters())
    mixer.offset.register_forward_hook(lambda module, inputs, output: output + 1)
    assert (mixer(x) - expected).abs().max() > 1e-2
    layer = mixer.offset
    norm = nn.LayerNorm(8)
    norm.weight, norm.bias = layer.norm_weight, layer.norm_bias
    linear = nn.Linear(8, 8)
    with torch.no_grad():
        linear.weight.copy_(layer.weight)
        linear.bias.copy_(layer.bias)
    mixer.offset = nn.Sequential(norm, LoRA(linear))
    nn.init.zeros_(mixer.offset[1].b)
    close(mixer(x), expected)


class Net(nn.Module):
    """Two mixers that share offsets, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ActiveTokenMixer(8, share=2), ActiveTokenMixer(8, share=2, own_offset=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        offset = self.first.offset(x)
        x = x + self.first(x, offset)
        return self.head(self.norm(x + self.second(x, offset)).mean((1, 2)))


TARGETS = [name.split(".")[-1] for name in LAYERS]
TUNERS = {
    "LoraConfig": dict(r=2, init_lora_weights=False),
    "LoraConfig, DoRA": dict(r=2, init_lora_weights=False, use_dora=True),
    "LoHaConfig": dict(r=2, init_weights=False),
    "LoKrConfig": dict(r=2, init_weights=False),
    "IA3Config": dict(feedforward_modules=["fc2"], init_ia3_weights=False),
}


@pytest.mark.parametrize("tuner", TUNERS)
def test_peft(tuner):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net, x = Net(), torch.randn(SHAPE)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    base = net(x)
    tuned = peft.get_peft_model(net, getattr(peft, tuner.split(",")[0])(target_modules=TARGETS, **TUNERS[tuner]))
    assert operators(tuned, x) == COMPOSED
    y, _ = step(tuned, x)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    assert len(trained) >= 12 and all(p.grad is not None and p.grad.any() for p in trained)
    assert (y - base).norm() > 1e-2 * base.norm()
    with tuned.disable_adapter():
        close(tuned(x), base)
    plain = tuned.merge_and_unload()
    assert operators(plain, x) == FUSED
    close(plain(x), y)


def test_peft_trains_whole_modules():
    peft = pytest.importorskip("peft")
    mixer, x = make()
    tuned = peft.get_peft_model(mixer, peft.LoraConfig(target_modules=["proj"], modules_to_save=["offset", "logits"]))
    step(tuned, x)
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad and p.grad is not None and p.grad.any()}
    for name in ("offset.modules_to_save.default.weight", "logits.modules_to_save.default.fc2.bias", "proj.lora_B.default.weight"):
        assert f"base_model.model.{name}" in trained


@pytest.mark.parametrize(
    "name,change", [("fc_w", "adapter"), ("logits", "adapter"), ("logits.fc2", "forward"), ("proj", "forward pre"), ("logits", "patched")]
)
def test_compiled_after_a_change(name, change):
    mixer, x = make()
    if change == "adapter":
        put(mixer, name, LoRA if name != "logits" else nn.Sequential)
    else:
        double(mixer.get_submodule(name), change)
    compiled, graphs = record(mixer)
    close(compiled(x), mixer(x))
    close(compiled(x + 1), mixer(x + 1))
    assert graphs == [COMPOSED]


@on_every_mixer
def test_adapters_after_compiling(kind):
    mixer, x = make(kind)
    compiled, graphs = record(mixer)
    base = compiled(x)
    assert graphs == [FUSED]
    plain = mixer.fc_w
    put(mixer, "fc_w", LoRA)
    for _ in range(2):
        y = compiled(x)
        assert graphs == [FUSED, COMPOSED] and (y - base).abs().max() > 1e-2
        close(y, mixer(x))
    mixer.fc_w = plain
    close(compiled(x), base)
    assert graphs[:2] == [FUSED, COMPOSED] and all(names == FUSED for names in graphs[2:])


@pytest.mark.parametrize("name", [*LAYERS, "logits"])
def test_another_forward_after_compiling(name):
    """Compilation sees a layer that changes also where another is called already, so that this one's state decides nothing."""
    mixer, x = make()
    compiled, graphs = record(mixer)
    for changed in (name, "proj" if name == "fc_w" else "fc_w"):
        compiled(x)
        double(mixer.get_submodule(changed), "patched")
        close(compiled(x), mixer(x))
    assert graphs == [FUSED, COMPOSED, COMPOSED]


def test_compiled_parametrizations():
    mixer, x = make()
    for name in LAYERS:
        parametrizations.weight_norm(mixer.get_submodule(name))
    compiled, graphs = record(mixer)
    close(compiled(x), mixer(x))
    close(compiled(x + 1), mixer(x + 1))
    assert graphs == [FUSED]


def test_a_compiled_adapter_trains():
    mixer, x = adapted()
    expected = merged(mixer, *LAYERS)
    close(step(torch.compile(mixer, fullgraph=True, backend="aot_eager"), x), step(expected, x))
    assert all(p.grad.any() for p in mixer.parameters())


def test_export_and_symbolic_tracing():
    mixer, x = adapted()
    expected = merged(mixer, *LAYERS)
    dims = {0: torch.export.Dim("b"), 1: torch.export.Dim("h"), 2: torch.export.Dim("w")}
    exported = torch.export.export(mixer, (x,), dynamic_shapes=(dims,)).module()
    traced = torch.fx.symbolic_trace(nn.Sequential(mixer))
    for inputs in (x, torch.randn(3, 6, 4, 8)):
        close(exported(inputs), expected(inputs))
        close(traced(inputs), expected(inputs))


def test_copies_and_pickles():
    mixer, x = adapted()
    expected = merged(mixer, *LAYERS)
    for other in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))):
        close(other(x), expected(x))
    mixer.fc_w.register_forward_hook(_double)
    for other in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))):
        assert torch.equal(other(x), mixer(x)) and not torch.equal(mixer(x), expected(x))


def _double(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return 2 * output


@on_every_path
def test_autocast_with_adapters(path):
    mixer, x = adapted()
    expected = merged(mixer, *LAYERS)
    y = expected(x)
    mixer.to(path.device)
    with path.active(), torch.autocast(path.device, torch.bfloat16):
        actual = mixer(x.to(path.device))
    assert actual.dtype == torch.bfloat16 and (actual.float().cpu() - y).norm() < 0.03 * y.norm()


@pytest.mark.parametrize("size", [(0, 3, 5), (2, 0, 5), (2, 3, 0)], ids=str)
@on_every_path
def test_nothing_with_adapters(path, size):
    """Images without a sample, row or column get gradients of zero, not NaN, which the mean of nothing is."""
    mixer, x = adapted()
    mixer.to(path.device)
    with path.active():
        y, dx = step(mixer, torch.zeros(*size, SHAPE[3], device=path.device))
    assert y.shape == dx.shape == (*size, SHAPE[3])
    assert all(p.grad is not None and not p.grad.any() for p in mixer.parameters())


def test_on_the_meta_device():
    mixer, x = adapted()
    assert mixer.to("meta")(x.to("meta")).shape == SHAPE
