"""Backbones of any timm family: four maps of any image."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import atmnet
import pytest
import timm
import torch
import torch.nn.functional as F
from atmnet.dense.backbone import STRIDES, Backbone
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn
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


SWINS = [name for name in SMALL if name.startswith("swin")]
SWIN_OF_ANY_SIZE = dict(strict_img_size=False, always_partition=True)


@pytest.fixture(autouse=True)
def fresh():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(name: str) -> Backbone:
    return Backbone(name, **SMALL[name]).eval()


UNSHIFTED = dict(depths=(1, 1, 1, 1))


@pytest.mark.parametrize(("name", "more"), [*((name, {}) for name in SMALL), *((name, UNSHIFTED) for name in SWINS)])
@torch.no_grad()
def test_families_that_take_any_image_see_it_without_padding(name, more):
    """The maps are timm's; where windows are shifted, timm's with torchvision's attention, as its own looks beyond the borders."""
    backbone = Backbone(name, **SMALL[name] | more).eval()
    takes_any = SWIN_OF_ANY_SIZE if name in SWINS else {}
    plain = timm.create_model(name, features_only=True, **takes_any | SMALL[name] | more).eval()
    plain.load_state_dict(backbone.net.state_dict())
    if name in SWINS:
        plain.patch_embed.dynamic_img_pad = True
    for block in () if more else swin_blocks(plain):
        block._attn = torchvision_attention(block)
    x = torch.randn(1, 3, 500, 683)
    maps, expected = backbone(x), plain(x)[-4:]
    up = [(125, 171), (63, 86), (32, 43), (16, 22)]
    assert [tuple(y.shape[2:]) for y in maps] == ([(500 // s, 683 // s) for s in STRIDES] if name == "test_convnext" else up)
    for y, of_timm in zip(maps, expected, strict=True):
        torch.testing.assert_close(y, of_timm.permute(0, 3, 1, 2) if name in SWINS else of_timm)


@torch.no_grad()
def test_images_of_other_families_are_padded_to_multiples_of_32():
    backbone = Backbone("test_efficientnet").eval()
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


def swin_blocks(backbone: nn.Module) -> list[Any]:
    return [block for block in backbone.modules() if isinstance(block, (SwinTransformerBlock, SwinTransformerV2Block))]


def torchvision_attention(block: Any) -> Callable[[Tensor], Tensor]:
    """In place of a block's own; logits of a second version's are scaled."""
    attn, second = block.attn, isinstance(block, SwinTransformerV2Block)
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]) if second else attn.qkv.bias

    def attend(x: Tensor) -> Tensor:
        return shifted_window_attention(
            x,
            attn.qkv.weight,
            attn.proj.weight,
            position_bias(attn, block.window_area) if second else attn._get_rel_pos_bias(),
            list(block.window_size),
            attn.num_heads,
            list(block.shift_size),
            qkv_bias=bias,
            proj_bias=attn.proj.bias,
            logit_scale=attn.logit_scale if second else None,
        )

    return attend


def position_bias(attn: Any, area: int) -> Tensor:
    table = attn.cpb_mlp(attn.relative_coords_table).view(-1, attn.num_heads)
    bias = table[attn.relative_position_index.flatten()].unflatten(0, (area, area))
    return 16 * bias.permute(2, 0, 1)[None].sigmoid()


@pytest.mark.parametrize("name", SWINS)
@torch.no_grad()
def test_swin_attends_as_torchvision_has_it(name):
    for block in swin_blocks(small(name)):
        if name == SWIN:
            nn.init.normal_(block.attn.relative_position_bias_table)
        x = torch.randn(2, 17, 23, block.dim)
        torch.testing.assert_close(block._attn(x), torchvision_attention(block)(x))
    assert block.shift_size == ((3, 3) if name == SWIN else (0, 0))  # the last stage's too


@pytest.mark.parametrize("name", SWINS)
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
