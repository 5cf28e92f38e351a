"""Feature pyramids: FPN and ATMFPN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from atmnet.costs import macs
from atmnet.dense.backbone import Backbone
from atmnet.dense.necks import ATMFPN, FPN, NECKS, Mix
from einops import rearrange
from test_backbone import SMALL, SWIN, small
from test_models_compile import Compiled, pools_by_parity, twelve_sizes
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

CHANNELS = [8, 16, 24, 32]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.set_num_threads(1)
    torch.manual_seed(0)


def maps(channels: list[int] = CHANNELS, height: int = 16, width: int = 24, batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, c, height >> i, width >> i) for i, c in enumerate(channels)]


def test_fpn_is_torchvisions():
    neck, other = FPN(CHANNELS, 12), FeaturePyramidNetwork(CHANNELS, 12)
    for ours, theirs in zip([*neck.laterals, *neck.outputs], [*other.inner_blocks, *other.layer_blocks], strict=True):
        nn.init.normal_(ours.bias)
        theirs[0].load_state_dict(ours.state_dict())
    x = maps()
    for y, expected in zip(neck(x), other({str(i): y for i, y in enumerate(x)}).values(), strict=True):
        torch.testing.assert_close(y, expected)


def test_atmfpn_merges_as_fpn_does():
    fpn, neck, x = FPN(CHANNELS, 12), ATMFPN(CHANNELS, 12), maps()
    assert all(isinstance(layer, Mix) for layer in [*neck.laterals, *neck.outputs])
    neck.laterals, neck.outputs = fpn.laterals, fpn.outputs
    for y, expected in zip(neck(x), fpn(x), strict=True):
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dim", [8, 12])
def test_an_atm_of_the_neck_is_the_backbones(dim):
    """Position, offsets of the normalised tokens, and the mixer of the normalised tokens."""
    mix = Mix(8, dim)
    for p in mix.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 8, 6, 5)
    tokens = rearrange(x + F.conv2d(x, mix.peg.weight, mix.peg.bias, padding=1, groups=8), "b c h w -> b h w c")
    of_offset = F.layer_norm(tokens, (8,), mix.offset.norm_weight, mix.offset.norm_bias)
    offset = F.linear(of_offset, mix.offset.weight, mix.offset.bias)
    expected = mix.mixer(F.layer_norm(tokens, (8,), mix.norm.weight, mix.norm.bias), offset)
    torch.testing.assert_close(mix(x), rearrange(expected, "b h w c -> b c h w"))


def test_every_channel_has_offsets_of_its_own():
    neck = ATMFPN([64, 320])
    assert [list(layer.offset.weight.shape) for layer in neck.laterals] == [[128, 64], [640, 320]]
    assert [list(layer.offset.weight.shape) for layer in neck.outputs] == [[512, 256], [512, 256]]
    assert [list(layer.mixer.fc_w.weight.shape) for layer in neck.laterals] == [[256, 64], [256, 320]]


def test_position_encodings_are_exempt_from_weight_decay():
    """Encodings are exempt as the backbone's are; a training program asks every module."""
    exempt = {
        f"{name}.{p}"
        for name, module in ATMFPN([8]).named_modules()
        if hasattr(module, "no_weight_decay")
        for p in module.no_weight_decay()
    }
    assert exempt == {"laterals.0.peg.weight", "outputs.0.peg.weight"}


@torch.no_grad()
def test_a_new_atmfpn_passes_on_what_comes():
    """An almost silent pyramid would leave a head nothing to learn from."""
    for y in ATMFPN([64, 128, 320, 512])(maps([64, 128, 320, 512])):
        assert 0.3 < y.std() < 3


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("name", ["atmnet_xt", "test_resnet", SWIN])
def test_odd_images_through_every_family(name, neck):
    backbone = Backbone(name, **SMALL[name])
    model = nn.Sequential(backbone, NECKS[neck](backbone.channels, 16))
    pyramid = model(torch.randn(2, 3, 133, 197))
    finest = (33, 49) if name == "atmnet_xt" else (34, 50)  # whose stem rounds otherwise
    assert [tuple(y.shape) for y in pyramid] == [(2, 16, *size) for size in (finest, (17, 25), (9, 13), (5, 7))]
    sum(y.square().mul(torch.rand_like(y)).mean() for y in pyramid).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert [n for n, p in model[1].named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("neck", NECKS)
def test_another_number_of_maps_is_refused(neck):
    with pytest.raises(ValueError, match=f"this {NECKS[neck].__name__} was made for 4 maps, got 3"):
        NECKS[neck](CHANNELS, 8)(maps()[1:])


@pytest.mark.parametrize("neck", NECKS)
@torch.no_grad()
def test_autocast(neck):
    model, x = NECKS[neck](CHANNELS, 16), maps()
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x)
    for y, expected in zip(rounded, exact, strict=True):
        assert y.dtype == torch.bfloat16 and (y.float() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize(
    "neck,channels", [pytest.param(FPN, CHANNELS, id="fpn"), pytest.param(ATMFPN, [8], id="atmfpn", marks=pytest.mark.exhaustive)]
)
def test_twelve_sizes_take_two_compilations_in_training(neck, channels):
    """An ATM of each kind is enough: they take long to trace."""
    model = neck(channels, 16)
    compiled = Compiled(model, "aot_eager")
    for height, width in twelve_sizes():
        x = maps(channels, 16 * (height // 16), 16 * (width // 16))
        pyramid = compiled(x)
        for y, expected in zip(pyramid, model(x), strict=True):
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        sum(y.square().mean() for y in pyramid).backward()
    assert compiled.compilations <= 2


@torch.no_grad()
@pools_by_parity
def test_twelve_sizes_of_images_take_two_compilations():
    backbone = small("test_resnet")
    model = nn.Sequential(backbone, FPN(backbone.channels, 16))
    compiled = Compiled(model, "aot_eager")
    for height, width in [*twelve_sizes(), (128, 160)]:  # of the last every map is half as large as the one before
        x = torch.randn(2, 3, height, width)
        for y, expected in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert compiled.compilations <= 2


# ---- MACs


class Maps(nn.Module):
    """Maps of a backbone's shapes in place of a backbone, at no cost."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x.new_empty(1, c, x.shape[2] // s, x.shape[3] // s) for c, s in zip(self.channels, (4, 8, 16, 32), strict=True)]


@pytest.mark.parametrize("C,D", [(64, 256), (256, 256)])
def test_gathers_and_fusion_count_nothing(C, D):
    model = nn.Sequential(Maps([C, C, C, C]), ATMFPN([C] * 4, D))
    model[1].outputs = nn.ModuleList(nn.Identity() for _ in range(4))
    tokens = sum((64 // s) * (96 // s) for s in (4, 8, 16, 32))
    per_token = 9 * C + 2 * 5 * C + 2 * C * C + 3 * C * D + D * D  # PEG, two norms, offsets, three FCs, projection
    assert macs(model, (64, 96)) == tokens * per_token + 4 * (D * D // 4 + 3 * D * D // 4)


@pytest.mark.parametrize("name", ["atmnet_xt", SWIN])
def test_a_backbone_counts_as_its_network(name):
    class Named(nn.Module):
        def __init__(self, backbone: Backbone) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {str(i): y for i, y in enumerate(self.backbone(x))}

    backbone = small(name)
    seen = backbone.padded_size(torch.empty(1, 3, 200, 250))
    assert macs(backbone.net, seen) == macs(backbone, (200, 250)) == macs(Named(backbone), (200, 250))
