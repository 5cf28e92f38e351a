"""The paper's ablations as options of the models: their gathers, their mixers, their networks."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from atmnet.ablations import OFFSETS, PlanarMixer, ThreeMixer, ZeroMixer, planar_gather
from atmnet.costs import macs
from einops import rearrange, repeat
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from atm_triton import ActiveTokenMixer, axial_gather

OPTIONS = [dict(peg=False), *(dict(offsets=offsets) for offsets in OFFSETS if offsets != "axial")]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def small(**options) -> nn.Module:
    """An ATMNet of 0.03 M parameters whose offsets are some tokens long."""
    model = timm.create_model("atmnet_xt", depths=(1, 3), dims=(8, 16), share=(2, 4), mlp_ratios=(2, 2), num_classes=3, **options)
    for name, p in model.named_parameters():
        if ".offset.weight" in name:
            nn.init.normal_(p, std=0.5)
    return model


def deformable(x: Tensor, offset: Tensor) -> Tensor:
    """A 1x1 deformable convolution with the identity as its weight, and an offset group per channel."""
    C, groups = x.shape[3], offset.shape[3] // 2
    pairs = repeat(offset, "b h w (two g) -> two b h w (g s)", two=2, s=C // groups).flip(0)
    pairs = rearrange(pairs, "two b h w c -> b (c two) h w").contiguous()
    weight = rearrange(torch.eye(C, dtype=x.dtype), "o i -> o i 1 1")
    return rearrange(deform_conv2d(rearrange(x, "b h w c -> b c h w"), pairs, weight), "b c h w -> b h w c")


@pytest.mark.parametrize("shape", [(2, 5, 7, 6), (1, 1, 4, 6), (1, 6, 1, 6)], ids=str)
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_planar_gather_is_a_deformable_convolution(shape: tuple[int, ...], spread: float) -> None:
    """Gradients agree too; the larger spread leaves the image on every side."""
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    offset = (torch.randn(*shape[:3], 4, dtype=torch.double) * spread).requires_grad_()
    dy = torch.randn(shape, dtype=torch.double)
    results = []
    for gather in (planar_gather, deformable):
        y = gather(x, offset)
        results.append([y, *torch.autograd.grad(y, (x, offset), dy)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
    assert not torch.allclose(results[0][0], deformable(x, offset + 1))


@pytest.mark.parametrize("axis", ["w", "h"])
def test_planar_gather_along_one_axis_is_the_axial_one(axis: str) -> None:
    """Gathers agree at whole positions too, where the gradient of an offset is that of its right side."""
    x = torch.randn(2, 5, 6, 4, dtype=torch.double, requires_grad=True)
    offset = torch.randn(2, 5, 6, 2, dtype=torch.double) * 3
    offset[:, :2] = offset[:, :2].round()
    offset[0, 0, 0] = torch.tensor([torch.inf, -torch.inf])
    offset.requires_grad_()
    halves = [offset, torch.zeros_like(offset)]
    planar = planar_gather(x, torch.cat(halves if axis == "w" else halves[::-1], -1))
    axial = axial_gather(x, offset, axis)
    torch.testing.assert_close(planar, axial)
    dy = torch.randn_like(x)
    for actual, expected in zip(*(torch.autograd.grad(y, (x, offset), dy) for y in (planar, axial)), strict=True):
        torch.testing.assert_close(actual, expected)


def test_planar_gather_of_nan() -> None:
    offset = torch.zeros(1, 2, 3, 4)
    offset[0, 1, 2, 3] = torch.nan  # along H, of the second of two groups
    assert planar_gather(torch.ones(1, 2, 3, 4), offset).isnan().nonzero().tolist() == [[0, 1, 2, 2], [0, 1, 2, 3]]


def test_planar_gather_computes_positions_in_float32() -> None:
    x, offset = torch.randn(1, 3, 200, 2).bfloat16(), torch.full((1, 3, 200, 2), 0.25)
    y = planar_gather(x, offset)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, planar_gather(x.double(), offset.double()).bfloat16())


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (1, 3, 4, 6), (1, 3, 4, 0), (1, 3, 5, 4), (3, 4, 4)], ids=str)
def test_planar_gather_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"planar_gather: .*{', '.join(map(str, shape))}"):
        planar_gather(torch.zeros(1, 3, 4, 8), torch.zeros(shape))


def written_out(mixer: PlanarMixer | ThreeMixer, x: Tensor, gathered: list[Tensor]) -> Tensor:
    """The paper's equations 3 and 4 for any number of branches."""
    branches = [fc(y) for fc, y in zip(mixer.fcs, gathered, strict=True)] + [mixer.fc_c(x)]
    s = sum(branches, torch.zeros(())).mean((1, 2))
    alpha = mixer.fc2(F.gelu(mixer.fc1(s))).reshape(*s.shape, len(branches)).softmax(2)
    return mixer.proj(sum((alpha[:, None, None, :, k] * branch for k, branch in enumerate(branches)), torch.zeros(())))


def test_mixers_are_the_papers_equations() -> None:
    x = torch.randn(2, 4, 5, 8)
    planar, three = PlanarMixer(8, share=2), ThreeMixer(8, share=2)
    for p in (*planar.parameters(), *three.parameters()):
        nn.init.normal_(p, std=0.5)
    offset = torch.randn(2, 4, 5, 8)
    torch.testing.assert_close(planar(x, offset), written_out(planar, x, [deformable(x, offset)]))
    offsets = [torch.randn(2, 4, 5, 4) for _ in range(6)]
    gathered = [axial_gather(x, offset, axis) for offset, axis in zip(offsets, "wwwhhh", strict=True)]
    torch.testing.assert_close(three(x, torch.cat(offsets, -1)), written_out(three, x, gathered))


def test_zero_mixes_tokens_through_the_fusion_alone() -> None:
    mixer = ZeroMixer(8, 2)
    for p in mixer.parameters():
        nn.init.normal_(p, std=0.5)
    axial = ActiveTokenMixer(8, 2, own_offset=False)
    axial.load_state_dict(mixer.state_dict())
    x = torch.randn(1, 4, 5, 8)
    torch.testing.assert_close(mixer(x), axial(x, torch.zeros(1, 4, 5, 8)))
    other = x.clone()
    other[0, 1, 2] += 1
    assert not torch.allclose(mixer(other)[0, 3, 3], mixer(x)[0, 3, 3])
    nn.init.zeros_(mixer.logits.fc2.weight)  # what the weights of the branches are does not depend on x now
    changed = (mixer(other) - mixer(x)).abs().amax(-1)[0] > 1e-6
    assert changed.nonzero().tolist() == [[1, 2]]


def test_the_planar_mixer_compiles() -> None:
    """Compiles into one graph, for images of any size."""
    mixer = PlanarMixer(8, 2)
    compiled = torch.compile(mixer, fullgraph=True, backend="eager", dynamic=True)
    for height, width in ((4, 5), (6, 3)):
        x, offset = torch.randn(2, height, width, 8), torch.randn(2, height, width, 8)
        torch.testing.assert_close(compiled(x, offset), mixer(x, offset))


@each_option
def test_networks(options: dict) -> None:
    """Forward and backward reach every parameter, activation checkpointing changes nothing, features come out."""
    model, x = small(drop_path_rate=0.0, **options), torch.randn(2, 3, 33, 40)
    y = model(x)
    y.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all() or not grad.any()] == []
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).square().mean().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name])
    features = timm.create_model("atmnet_xt", features_only=True, out_indices=(0, 1), **options)
    assert [list(y.shape) for y in features(x[:1])] == [[1, 64, 8, 10], [1, 128, 4, 5]]


def test_what_networks_have_of_their_own() -> None:
    """Networks lack what each is named for, and share the rest with the paper's."""
    x, whole = torch.randn(1, 3, 40, 40), small().eval()
    pegs = {f"stages.{i}.peg.{part}" for i in (0, 1) for part in ("weight", "bias")}
    layers = {f"stages.{i}.blocks.0.offset.{part}" for i in (0, 1) for part in ("norm_weight", "norm_bias", "weight", "bias")}
    for options, absent in ((dict(peg=False), pegs), (dict(offsets="zero"), pegs | layers)):
        model = small(**options).eval()
        assert set(whole.state_dict()) - set(model.state_dict()) == absent
        model.load_state_dict({name: value for name, value in whole.state_dict().items() if name not in absent})
        assert not torch.allclose(model(x), whole(x))
    for offsets, factor in (("planar", 1), ("three", 3)):
        model = small(offsets=offsets)
        assert all(".mixer." in name for name in set(whole.state_dict()) ^ set(model.state_dict()))
        assert model.stages[1].blocks[0].offset.weight.shape == (factor * 8, 16)


def test_the_decay_of_pegs_that_are_not_there() -> None:
    assert small().no_weight_decay() == {"stages.0.peg.weight", "stages.1.peg.weight"}
    assert small(peg=False).no_weight_decay() == small(offsets="zero").no_weight_decay() == set()


def test_axial_is_the_default() -> None:
    x = torch.randn(1, 3, 32, 32)
    outputs = []
    for options in ({}, dict(peg=True, offsets="axial")):
        torch.manual_seed(0)
        outputs.append(small(**options).eval()(x))
    assert torch.equal(*outputs)
    assert {type(block.mixer) for stage in small().stages for block in stage.blocks} == {ActiveTokenMixer}


def test_other_offsets_are_refused() -> None:
    with pytest.raises(ValueError, match="offsets must be one of 'axial', 'zero', 'planar', 'three', got 'diagonal'"):
        timm.create_model("atmnet_xt", offsets="diagonal")


def test_autocast() -> None:
    model, x = small(offsets="planar").eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16 and (y - model(x)).norm() < 0.1 * model(x).norm()


def test_macs_do_not_depend_on_what_offsets_are() -> None:
    """A gather costs nothing, as the paper counts: an offset more per channel is 2 products more, in the FCs and the offset layer."""
    planar, axial, three = (macs(small(offsets=offsets), (32, 32)) for offsets in ("planar", "axial", "three"))
    tokens = [64, 16, 16, 16]  # of each block: 8 channels in the first, 16 in the others
    dims, makes = [8, 16, 16, 16], [64 * 8 * 8, 16 * 16 * 8]
    products = sum(n * c * c for n, c in zip(tokens, dims, strict=True))
    fusion = sum(c // 4 * c for c in dims)
    assert axial - planar == products + fusion
    assert three - axial == 4 * (products + fusion) + 2 * sum(makes)
