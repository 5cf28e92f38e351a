"""swap in networks that exist: with which function a new mixer begins, and that they run, train, compile and go back."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Attention
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from atm_triton import ActiveTokenMixer, ActiveTokenMixer2d, swap, unswap


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def offsets_at_zero(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, ActiveTokenMixer):
            nn.init.zeros_(module.offset.weight)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.Conv2d(8, 4, 3, padding=2, dilation=2, groups=2),
        nn.Conv2d(8, 8, 7, padding="same", groups=8),
        nn.Conv2d(8, 8, (1, 5), padding=(0, 2)),
    ],
    ids=["dense", "widening", "grouped", "depthwise", "along the row"],
)
def test_a_convolution_begins_with_its_kernel(conv):
    x, model = torch.randn(2, 8, 9, 7), nn.Sequential(conv)
    kernel, bias = conv.weight.detach(), conv.bias
    rows, columns = kernel.shape[2] // 2, kernel.shape[3] // 2
    swap(model, nn.Conv2d, share=2)
    mixer = model[0]
    assert isinstance(mixer, ActiveTokenMixer2d) and mixer.share == 2 and mixer.out_dim == conv.out_channels
    assert torch.equal(mixer.fc_c.weight, kernel[:, :, rows, columns])
    offsets_at_zero(model)
    whole = F.conv2d(x, kernel.sum((2, 3), keepdim=True), bias, groups=conv.groups)
    torch.testing.assert_close(model(x), whole)
    constant = torch.randn(2, 8, 1, 1).expand(-1, -1, 15, 15)
    torch.testing.assert_close(model(constant)[..., 7, 7], conv(constant)[..., 7, 7])


def test_taps_go_to_the_axis_they_lie_on():
    conv = nn.Conv2d(1, 1, 3, padding=1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 2, 4], [8, 16, 32], [64, 128, 256]]))
    model = nn.Sequential(conv)
    swap(model, "0")
    corners = (1 + 4 + 64 + 256) / 2
    assert model[0].fc_w.weight.item() == 8 + 32 + corners
    assert model[0].fc_h.weight.item() == 2 + 128 + corners
    assert model[0].fc_c.weight.item() == 16


def test_what_is_new_follows_what_was_there():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, dtype=torch.float64)).eval()
    centre = model[0].weight[:, :, 1, 1]
    swap(model, "0")
    assert torch.equal(model[0].fc_c.weight, centre)
    assert {p.dtype for p in model.parameters()} == {torch.float64} and not any(module.training for module in model.modules())


def vit(**kwargs) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, **{"img_size": (24, 32), **kwargs}
    )


def swin(**kwargs) -> nn.Module:
    sizes = dict(img_size=32, window_size=2, embed_dim=8, depths=(1, 2), num_heads=(2, 2), num_classes=3, drop_path_rate=0.0)
    return timm.create_model("swin_tiny_patch4_window7_224", **{**sizes, **kwargs})


def attention_to_itself(attention: nn.Module, x: Tensor) -> Tensor:
    """Result for every token that attends to nothing else."""
    return attention.proj(attention.qkv(x).chunk(3, -1)[2])


@pytest.mark.parametrize("kwargs,prefix", [({}, 1), ({"reg_tokens": 4}, 5), ({"class_token": False, "global_pool": "avg"}, 0)], ids=str)
def test_attention_begins_with_its_values(kwargs, prefix):
    model = vit(**kwargs)
    attention = model.blocks[0].attn
    nn.init.normal_(attention.qkv.bias)
    nn.init.normal_(attention.proj.bias)
    report = swap(model, Attention)
    assert [row.note for row in report.changed] == ["a grid of 3 x 4 tokens"] * 2
    offsets_at_zero(model)
    x = torch.randn(2, prefix + 12, 16)
    y = attention_to_itself(attention, x)
    torch.testing.assert_close(model.blocks[0].attn(x)[:, prefix:], y[:, prefix:])
    mean = y[:, prefix:].mean(1, keepdim=True).expand(-1, prefix, -1)  # which is attention of equal weights
    torch.testing.assert_close(model.blocks[0].attn(x)[:, :prefix], mean)


def test_a_class_token_sees_the_patches():
    model = vit().eval()
    swap(model, "blocks.*.attn")
    images = torch.randn(1, 3, 24, 32)
    for row in range(0, 24, 8):
        for column in range(0, 32, 8):
            other = images.clone()
            other[..., row : row + 8, column : column + 8] += 1
            assert not torch.allclose(model(other), model(images), rtol=1e-6, atol=0)


def test_tokens_are_mixed_along_rows_and_columns():
    model = vit(class_token=False, global_pool="avg")
    swap(model, "blocks.*.attn")
    mixer = model.blocks[0].attn
    nn.init.normal_(mixer.offset.weight)
    x = torch.randn(2, 12, 16)
    image = rearrange(x, "b (h w) c -> b h w c", h=3)
    expected = ActiveTokenMixer.forward(mixer, image)
    torch.testing.assert_close(mixer(x), rearrange(expected, "b h w c -> b (h w) c"))


def test_grids_must_be_known_and_fit():
    attention = Attention(16, 2)
    model = nn.Sequential(attention)
    assert "give grid=" in swap(model, Attention).left[0].note and model[0] is attention
    with pytest.raises(ValueError, match=r"the example \[2, 14, 16\] does not go through the model: .*a grid of 3 x 5"):
        swap(model, Attention, grid=(3, 5), example=torch.randn(2, 14, 16))
    assert model[0] is attention
    swap(model, Attention, grid=(3, 5))
    assert model(torch.randn(2, 15, 16)).shape == (2, 15, 16) and model(torch.randn(2, 17, 16)).shape == (2, 17, 16)
    with pytest.raises(ValueError, match=r"a grid of 3 x 5, \[B, N, 16\], got \[2, 14, 16\]"):
        model(torch.randn(2, 14, 16))
    with pytest.raises(ValueError, match="cannot mask"):
        model[0](torch.randn(2, 15, 16), is_causal=True)
    model = vit(dynamic_img_size=True)
    swap(model, Attention)
    with pytest.raises(ValueError, match=r"1 tokens and a grid of 3 x 4, \[B, N, 16\], got \[1, 17, 16\]; .* swap it with grid"):
        model(torch.randn(1, 3, 32, 32))


def test_attention_of_several_widths_is_left():
    model = nn.Sequential(Attention(16, 2))
    model[0].proj = nn.Linear(16, 8)
    assert "widths differ: qkv 16 to 48, proj 16 to 8" in swap(model, Attention, grid=(2, 2)).left[0].note


@pytest.mark.parametrize("target", [WindowAttention, SwinTransformerBlock, "layers.*.attn"], ids=["attention", "block", "pattern"])
def test_swin_mixes_whole_maps(target):
    model = swin(strict_img_size=False)
    block = model.layers[1].blocks[1]
    report = swap(model, target)
    assert {row.name for row in report.changed} == {"layers.0.blocks.0", "layers.1.blocks.0", "layers.1.blocks.1"} and not report.left
    offsets_at_zero(model)
    new = model.layers[1].blocks[1]
    assert new.mlp is block.mlp and new.norm1 is block.norm1
    x = torch.randn(2, 5, 3, 16)  # no multiple of a window
    z = x + attention_to_itself(block.attn, block.norm1(x))
    torch.testing.assert_close(new(x), z + block.mlp(block.norm2(z)))
    nn.init.constant_(new.attn.offset.bias, 2.0)  # beyond a window
    far = x.clone()
    far[:, 4, 2] += 1
    assert not torch.allclose(new.attn(far)[:, 2, 2], new.attn(x)[:, 2, 2])
    assert model(torch.randn(1, 3, 40, 56)).shape == (1, 3)


NETWORKS = {
    "resnet": (lambda: timm.create_model("resnet50", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=3), nn.Conv2d, 1),
    "convnext": (lambda: timm.create_model("convnext_tiny", depths=(1, 0, 0, 1), dims=(8, 8, 8, 16), num_classes=3), "*.conv_dw", 2),
    "swin": (swin, WindowAttention, 3),
    "vit": (lambda: vit(img_size=32), Attention, 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_compile_and_go_back(name):
    make, target, count = NETWORKS[name]
    model = make()
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    modules, state, y = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}, model.eval()(images)
    report = swap(model.train(), target, example=images)
    assert len(report.changed) == count and report.macs_before and report.macs_after
    torch.testing.assert_close(torch.compile(model.eval(), fullgraph=True, backend="eager")(images), model(images))
    copy = {k: v.clone() for k, v in model.state_dict().items()}

    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    mixers = [module for module in model.modules() if isinstance(module, ActiveTokenMixer)]
    assert len(mixers) == count and all(p.grad is not None for mixer in mixers for p in mixer.parameters())

    model.load_state_dict(copy)
    unswap(model)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert torch.equal(model.eval()(images), y)


def test_a_pyramid():
    neck = FeaturePyramidNetwork([8, 16], 8)
    report = swap(neck, nn.Conv2d)
    assert {row.name for row in report.changed} == {"layer_blocks.0.0", "layer_blocks.1.0"} and len(report.left) == 2
    maps = {"fine": torch.randn(1, 8, 8, 6), "coarse": torch.randn(1, 16, 4, 3)}
    assert [list(y.shape) for y in neck(maps).values()] == [[1, 8, 8, 6], [1, 8, 4, 3]]


def test_attention_of_other_networks_is_left():
    """Attention of other tokens: SAM's maps, and CaiT's without its class token."""
    model = timm.create_model("samvit_base_patch16", embed_dim=32, depth=1, num_heads=2, img_size=64)
    report = swap(model, lambda name, module: name.endswith("attn"))
    assert not report.changed and len(report.left) == 1


def test_a_swin_block_keeps_what_changed_meanwhile():
    model = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1,), num_heads=(2,), img_size=32, window_size=4)
    swap(model, WindowAttention)
    mlp = model.layers[0].blocks[0].mlp = nn.Identity()
    model.layers[0].blocks[0].attn.bfloat16()
    unswap(model)
    block = model.layers[0].blocks[0]
    assert block.mlp is mlp
    assert {p.dtype for p in block.attn.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in block.norm1.parameters()} == {torch.float32}


def test_frozen_layers_give_frozen_mixers():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)).requires_grad_(False)
    swap(model, nn.Conv2d)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("target,share,message", [(nn.Conv2d, 0, "share must be at least 1, got 0"), ([], 1, "target is empty")])
def test_arguments_that_say_nothing(target, share, message):
    with pytest.raises(ValueError, match=message):
        swap(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), target, share=share)


@pytest.mark.parametrize(
    "model,target,message",
    [
        ("resnet18", None, r"model must be a torch.nn.Module, got 'resnet18': swap\(timm.create_model\('resnet18'\)\)"),
        (5, None, "model must be a torch.nn.Module, got 5"),
        (nn.Sequential(), 5, "target must be a class, .* got a int"),
    ],
)
def test_what_is_no_model_or_target(model, target, message):
    with pytest.raises(TypeError, match=message):
        swap(model, target)
