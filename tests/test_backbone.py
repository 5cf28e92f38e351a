"""Backbones of any timm family: four maps of any image."""

from __future__ import annotations

import copy
import pickle

import atmnet
import pytest
import timm
import torch
import torch.nn.functional as F
from atmnet.dense.backbone import STRIDES, Backbone
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn
from torchvision.models.swin_transformer import shifted_window_attention

SWIN = "swin_tiny_patch4_window7_224"
SMALL = {
    "atmnet_xt": dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), mlp_ratios=(2, 2, 2, 2)),
    "test_resnet": {},
    "test_convnext": {},
    SWIN: dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(2, 4, 4, 4)),
    "swinv2_tiny_window8_256": dict(embed_dim=16, depths=(2, 1, 1, 1), num_heads=(2, 4, 4, 4)),
    "pvt_v2_b0": dict(depths=(1, 1, 1, 1)),
}


@pytest.fixture(autouse=True)
def fresh():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(name: str) -> Backbone:
    return Backbone(name, **SMALL[name]).eval()


@pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith("swin")])
@torch.no_grad()
def test_families_that_take_any_image_see_it_without_padding(name):
    backbone = small(name)
    x = torch.randn(1, 3, 500, 683)
    maps, plain = backbone(x), list(backbone.net(x))
    for y, expected in zip(maps, plain, strict=True):
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
    up = [(125, 171), (63, 86), (32, 43), (16, 22)]
    assert [tuple(y.shape[2:]) for y in maps] == ([(500 // s, 683 // s) for s in STRIDES] if name == "test_convnext" else up)


@pytest.mark.parametrize("name", ["test_efficientnet", *(name for name in SMALL if name.startswith("swin"))])
@torch.no_grad()
def test_images_of_other_families_are_padded_to_multiples_of_32(name):
    backbone = Backbone(name, **SMALL.get(name, {})).eval()
    x = torch.randn(2, 3, 133, 197)
    maps = backbone(x)
    assert [tuple(y.shape) for y in maps] == [(2, c, 160 // s, 224 // s) for c, s in zip(backbone.channels, STRIDES, strict=True)]
    for y, padded in zip(maps, backbone(F.pad(x, (0, 27, 0, 27))), strict=True):
        torch.testing.assert_close(y, padded, rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_the_maps_are_timms(name):
    """Maps are timm's at its own image size, where all Swins but their last stage attend alike."""
    backbone = small(name)
    plain = timm.create_model(name, features_only=True, **SMALL[name]).eval()
    plain.load_state_dict(backbone.net.state_dict())
    size = 256 if "256" in name else 224
    x = torch.randn(1, 3, size, size)
    maps = plain(x)[-4:]
    if name.startswith("swin"):
        maps = [y.permute(0, 3, 1, 2) for y in maps[:3]]
    for y, expected in zip(backbone(x), maps, strict=len(maps) == 4):
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("name", [*atmnet.VARIANTS, "resnet50", SWIN, "convnext_tiny"])
def test_channels(name):
    with torch.device("meta" if name in atmnet.VARIANTS else "cpu"):  # where older timm cannot make the others
        backbone = Backbone(name).to("meta")
    maps = backbone(torch.empty(1, 3, 64, 96, device="meta"))
    if name == "resnet50":  # without its map at stride 2
        expected = [256, 512, 1024, 2048]
    else:
        expected = [96, 192, 384, 768] if name in (SWIN, "convnext_tiny", "atmnet_l") else [64, 128, 320, 512]
    assert backbone.channels == [y.shape[1] for y in maps] == expected


def test_names_and_arguments():
    backbone = Backbone("ATMNet-xT", drop_path_rate=0.3)
    assert isinstance(backbone.net, atmnet.ATMNetFeatures)
    assert backbone.net.model.stages[-1].blocks[-1].drop_path.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize(
    "name,message",
    [
        ("atmnet_q", "atmnet_q: timm knows no such model; it knows .*atmnet_t"),
        ("resnet5", "it knows resnet50"),
        ("no such model", "no such model: timm knows no such model$"),
        ("test_vit", r"test_vit has its last feature maps at strides \[16, 16, 16, 16\]; dense prediction needs \[4, 8, 16, 32\]"),
        ("levit_128s", "levit_128s does not have four feature maps"),
        ("swinv2_cr_tiny_224", "swinv2_cr_tiny_224 mixes up the borders of maps"),
    ],
)
def test_models_that_do_not_serve_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        Backbone(name)


def test_weights_that_timm_does_not_have():
    with pytest.raises(ValueError, match=r"atmnet_t: .*; the authors' weights are loaded by atmnet.load_official"):
        Backbone("atmnet_t", pretrained=True)


def test_swins_position_tables_are_exempt_from_weight_decay():
    backbone = small(SWIN)
    assert len(backbone.no_weight_decay()) == len(swin_blocks(backbone)) > 0
    assert backbone.no_weight_decay() <= {name for name, _ in backbone.named_parameters()}


def swin_blocks(backbone: nn.Module) -> list[SwinTransformerBlock]:
    return [block for block in backbone.modules() if isinstance(block, SwinTransformerBlock)]


@torch.no_grad()
def test_swin_attends_as_torchvision_has_it():
    for block in swin_blocks(small(SWIN)):
        attn = block.attn
        nn.init.normal_(attn.relative_position_bias_table)
        x = torch.randn(2, 17, 23, block.dim)
        expected = shifted_window_attention(
            x,
            attn.qkv.weight,
            attn.proj.weight,
            attn._get_rel_pos_bias(),
            [7, 7],
            attn.num_heads,
            list(block.shift_size),
            qkv_bias=attn.qkv.bias,
            proj_bias=attn.proj.bias,
        )
        torch.testing.assert_close(block._attn(x), expected)
    assert block.shift_size == (3, 3)  # the last stage's too


@pytest.mark.parametrize("name", [SWIN, "swinv2_tiny_window8_256"])
@torch.no_grad()
def test_swins_last_rows_do_not_attend_to_the_first(name):
    backbone = small(name)
    x = torch.randn(1, 3, 160, 96)
    changed = x.clone()
    changed[:, :, -4:] = 0
    difference = (backbone(x)[0] - backbone(changed)[0]).abs().amax((0, 1, 3))
    assert difference[-1] > 0.1 and not difference[:20].any()


@torch.no_grad()
def test_swins_copies_are_of_their_own():
    backbone = small(SWIN)
    x = torch.randn(1, 3, 64, 64)
    expected = backbone(x)[3]
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        torch.testing.assert_close(other(x)[3], expected)
        for p in other.parameters():
            p.zero_()
        assert not other(x)[3].any()
    torch.testing.assert_close(backbone(x)[3], expected)
