"""swap in models of torchvision and transformers, and by converters of one's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.swin_transformer import ShiftedWindowAttentionV2, SwinTransformerBlockV2

from atm_triton import ActiveTokenMixer, ActiveTokenMixer2d, swap, unswap


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def torchvision_vit() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)


def torchvision_swin(**kwargs) -> nn.Module:
    return SwinTransformer([2, 2], 8, [1, 2], [2, 2], [2, 2], stochastic_depth_prob=0.0, num_classes=3, **kwargs)


def torchvision_swin_v2() -> nn.Module:
    return torchvision_swin(block=SwinTransformerBlockV2)


def of_transformers(name: str, **sizes) -> nn.Module:
    transformers = pytest.importorskip("transformers", minversion="5")
    small = dict(image_size=32, num_labels=3) | sizes
    config = getattr(transformers, f"{name}Config")(**small)
    return getattr(transformers, f"{name}ForImageClassification")(config)


VIT = dict(patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
SWIN = dict(patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=4, drop_path_rate=0.0)
NETWORKS = {
    "torchvision's ViT": (torchvision_vit, "*.self_attention", 2, "a grid of 4 x 4 tokens"),
    "torchvision's Swin": (torchvision_swin, "*.attn", 3, "mixes the whole map, not windows"),
    "torchvision's Swin V2": (torchvision_swin_v2, ShiftedWindowAttentionV2, 3, "mixes the whole map, not windows"),
    "ViT": (lambda: of_transformers("ViT", intermediate_size=32, **VIT), "*.attention", 2, "a grid of 4 x 4 tokens"),
    "DeiT": (lambda: of_transformers("DeiT", intermediate_size=32, **VIT), "*.attention", 2, "a grid of 4 x 4 tokens"),
    "Dinov2": (lambda: of_transformers("Dinov2", mlp_ratio=2, **VIT), "*.attention", 2, "a grid of 4 x 4 tokens"),
    "Dinov2WithRegisters": (
        lambda: of_transformers("Dinov2WithRegisters", mlp_ratio=2, num_register_tokens=3, **VIT),
        "*.attention",
        2,
        "a grid of 4 x 4 tokens",
    ),
    "Swin": (lambda: of_transformers("Swin", **SWIN), "*.attention", 3, "mixes the whole map, not windows"),
    "ConvNext": (
        lambda: of_transformers("ConvNext", num_stages=2, depths=[1, 1], hidden_sizes=[8, 16]),
        "*.dwconv",
        2,
        ("8 groups", "16 groups"),
    ),
}


def logits(model: nn.Module, images: Tensor) -> Tensor:
    y = model(images)
    return y if isinstance(y, Tensor) else y.logits


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_compile_and_go_back(name):
    make, target, count, note = NETWORKS[name]
    model = make()
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    modules, y = dict(model.named_modules()), logits(model.eval(), images)
    report = swap(model.train(), target)
    assert not report.left and len(report.changed) == count and {row.note for row in report.changed} <= {note, *note}
    with torch.no_grad():
        compiled = torch.compile(model.eval(), backend="eager")
        torch.testing.assert_close(logits(compiled, images), logits(model, images), rtol=1e-4, atol=1e-5)

    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(logits(model, images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    mixers = [module for module in model.modules() if isinstance(module, ActiveTokenMixer)]
    assert len(mixers) == count and all(p.grad is not None for mixer in mixers for p in mixer.parameters())
    unswap(model)
    assert dict(model.named_modules()) == modules
    assert logits(model.eval(), images).shape == y.shape


def offsets_at_zero(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, ActiveTokenMixer):
            nn.init.zeros_(module.offset.weight)


def test_multihead_attention_begins_with_its_values():
    model = torchvision_vit()
    attention = model.encoder.layers[0].self_attention
    for p in attention.parameters():
        nn.init.normal_(p)
    swap(model, nn.MultiheadAttention)
    offsets_at_zero(model)
    x = torch.randn(2, 17, 16)
    y, weights = model.encoder.layers[0].self_attention(x, x, x, need_weights=False)
    value = F.linear(x, attention.in_proj_weight[-16:], attention.in_proj_bias[-16:])
    expected = attention.out_proj(value)[:, 1:]
    assert weights is None
    torch.testing.assert_close(y[:, 1:], expected)
    torch.testing.assert_close(y[:, :1], expected.mean(1, keepdim=True))
    with pytest.raises(ValueError, match="must be the same tensor"):
        model.encoder.layers[0].self_attention(x, x + 1, x)


@pytest.mark.parametrize("name", ["ViT", "Swin"])
def test_four_layers_begin_with_their_values(name):
    model = NETWORKS[name][0]()
    attention = next(module for module in model.modules() if hasattr(module, "v_proj"))
    for p in attention.parameters():
        nn.init.normal_(p)
    swap(model, "*.attention")
    offsets_at_zero(model)
    mixer = next(module for module in model.modules() if isinstance(module, ActiveTokenMixer))
    x = torch.randn(2, 4, 4, mixer.dim)
    torch.testing.assert_close(ActiveTokenMixer.forward(mixer, x), attention.o_proj(attention.v_proj(x)))


def test_registers_come_before_the_grid():
    model = NETWORKS["Dinov2WithRegisters"][0]()
    swap(model, "*.attention")
    mixer = next(module for module in model.modules() if isinstance(module, ActiveTokenMixer))
    assert mixer.prefix == 4
    with pytest.raises(ValueError, match=r"4 tokens and a grid of 4 x 4"):
        model(torch.randn(1, 3, 48, 48))


class Mine(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_converters():
    model = nn.Sequential(Mine(8), nn.Linear(8, 8))
    mine = model[0]
    assert "give converters=" in swap(model, Mine).left[0].note
    report = swap(model, Mine, converters={Mine: lambda layer: ActiveTokenMixer(layer.fc.in_features)})
    assert [row[:3] for row in report.changed] == [("0", "Mine", "ActiveTokenMixer")]
    assert model(torch.randn(1, 4, 4, 8)).shape == (1, 4, 4, 8)
    unswap(model)
    assert model[0] is mine


def test_layers_without_parameters_convert_too():
    model = nn.Sequential(nn.AvgPool2d(3, 1, 1))
    swap(model, "0", converters={nn.AvgPool2d: lambda layer: ActiveTokenMixer2d(8)})
    assert model(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)
    assert unswap(model).changed[0].now == "AvgPool2d" and type(model[0]) is nn.AvgPool2d


@pytest.mark.parametrize("given,message", [(lambda layer: None, "got None"), (lambda layer: nn.ReLU(), "a ReLU without parameters")])
def test_converters_that_convert_nothing(given, message):
    with pytest.raises(TypeError, match=f"the converter of Mine .*{message}"):
        swap(nn.Sequential(Mine(8)), Mine, converters={Mine: given})
