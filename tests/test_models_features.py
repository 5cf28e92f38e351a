"""Dense features: features_only, forward_intermediates, pruning."""

from __future__ import annotations

import copy

import atmnet
import pytest
import timm
import torch
from timm.models import FeatureInfo
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

NAMES = list(atmnet.VARIANTS)
REDUCTIONS = [4, 8, 16, 32]


def create(name: str = "atmnet_xt", seed: int = 0, **kwargs) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs).eval()


def widths(name: str) -> list[int]:
    return [96, 192, 384, 768] if name == "atmnet_l" else [64, 128, 320, 512]


@pytest.fixture(scope="module")
def model() -> atmnet.ATMNet:
    return create()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", NAMES)
def test_feature_maps_of_every_variant(name):
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True)
        maps = model(torch.empty(1, 3, 64, 96))
    assert model.feature_info.channels() == widths(name)
    assert model.feature_info.reduction() == REDUCTIONS
    assert [tuple(y.shape) for y in maps] == [(1, c, 64 // r, 96 // r) for c, r in zip(widths(name), REDUCTIONS, strict=True)]


def test_sizes_round_up():
    maps = create(features_only=True)(torch.randn(1, 3, 33, 67))
    assert [tuple(y.shape[2:]) for y in maps] == [(8, 17), (4, 9), (2, 5), (1, 3)]


def test_each_map_is_its_stage_through_a_norm_of_its_own(images):
    features = create(features_only=True)
    for i, norm in enumerate(features.norms.values()):
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.fill_(i)
    stages = features.model.forward_intermediates(images, output_fmt="NHWC", intermediates_only=True)
    for i, (y, stage) in enumerate(zip(features(images), stages, strict=True)):
        weight = features.norms[str(i)].weight
        normed = (stage - stage.mean(-1, keepdim=True)) / (stage.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(y, (normed * weight + i).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


def test_maps_are_normalised_at_initialisation(images):
    for y in create(features_only=True)(images):
        torch.testing.assert_close(y.mean(1), torch.zeros_like(y.mean(1)), rtol=0, atol=1e-5)
        torch.testing.assert_close(y.std(1, correction=0), torch.ones_like(y.mean(1)), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "asked,given", [((1, 3), [1, 3]), ((3, 1), [1, 3]), ((-1, 0), [0, 3]), ((-2,), [2]), (2, [2, 3]), ((0, 1), [0, 1])], ids=str
)
def test_out_indices(images, asked, given):
    everything = create(features_only=True)
    some = create(features_only=True, out_indices=asked)
    assert some.feature_info.channels() == [widths("atmnet_xt")[i] for i in given]
    assert some.feature_info.reduction() == [REDUCTIONS[i] for i in given]
    assert len(some.model.stages) == max(given) + 1  # what lies behind the last map is gone: DDP finds no unused parameter
    maps = some(images)
    assert len(maps) == len(given)
    for y, i in zip(maps, given, strict=True):
        torch.testing.assert_close(y, everything(images)[i])
    # The norms are named after their stages, so that weights move between selections.
    assert {name.split(".")[1] for name in some.state_dict() if name.startswith("norms")} == {str(i) for i in given}


def test_out_indices_outside_are_refused():
    with pytest.raises(AssertionError, match="out of range"):
        create(features_only=True, out_indices=(0, 4))


@torch.enable_grad()
def test_every_parameter_of_the_feature_maps_is_used(images):
    for out_indices in ((0, 1, 2, 3), (1, 2)):
        features = create(features_only=True, out_indices=out_indices, drop_path_rate=0.1).train()
        sum(y.square().mul(torch.rand_like(y)).sum() for y in features(images)).backward()
        assert [name for name, p in features.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.enable_grad()
def test_grad_checkpointing_of_feature_maps(images):
    gradients = []
    for enable in (False, True):
        features = create(features_only=True).train()
        features.set_grad_checkpointing(enable)
        assert all(stage.grad_checkpointing is enable for stage in features.model.stages)
        sum(y.square().mul(y.abs()).sum() for y in features(images)).backward()
        gradients.append([p.grad for p in features.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_the_plain_getter_of_timm(images):
    getter = create(features_only=True, feature_cls="getter")
    assert not isinstance(getter, atmnet.ATMNetFeatures)
    for y, stage in zip(getter(images), getter.model.forward_intermediates(images, intermediates_only=True), strict=True):
        torch.testing.assert_close(y, stage)


def test_features_of_other_channels_dtype_and_device():
    features = create(features_only=True, in_chans=1, dtype=torch.bfloat16, device="meta")
    assert {(p.device.type, p.dtype) for p in features.parameters()} == {("meta", torch.bfloat16)}
    assert features(torch.empty(2, 1, 64, 64, device="meta", dtype=torch.bfloat16))[3].shape == (2, 512, 2, 2)


def test_intermediates(model, images):
    final, stages = model.forward_intermediates(images)
    torch.testing.assert_close(final, model.forward_features(images))
    info = FeatureInfo(model.feature_info, out_indices=(0, 1, 2, 3))
    assert [tuple(y.shape) for y in stages] == [(2, c, 64 // r, 96 // r) for c, r in zip(info.channels(), info.reduction(), strict=True)]
    for module, stage in zip(info.module_name(), stages, strict=True):
        seen = []
        handle = model.get_submodule(module).register_forward_hook(lambda _, __, y, seen=seen: seen.append(y))
        model(images)
        handle.remove()
        torch.testing.assert_close(seen[0].permute(0, 3, 1, 2), stage)


def test_intermediates_selected_and_formatted(model, images):
    _, stages = model.forward_intermediates(images, output_fmt="NHWC")
    for indices, expected in ((None, [0, 1, 2, 3]), (1, [3]), ([0, 2], [0, 2]), ([-1], [3])):
        chosen = model.forward_intermediates(images, indices, output_fmt="NHWC", intermediates_only=True)
        for y, i in zip(chosen, expected, strict=True):
            torch.testing.assert_close(y, stages[i])
    with pytest.raises(ValueError, match="NLC"):
        model.forward_intermediates(images, output_fmt="NLC")


def test_intermediates_normed(model, images):
    final, stages = model.forward_intermediates(images, norm=True, output_fmt="NHWC")
    _, raw = model.forward_intermediates(images, output_fmt="NHWC")
    torch.testing.assert_close(stages[3], final)
    torch.testing.assert_close(model.norm(raw[3]), final)
    torch.testing.assert_close(stages[:3], raw[:3])


def test_intermediates_stop_early(model, images):
    ran = []
    handles = [stage.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, stage in enumerate(model.stages)]
    final, stages = model.forward_intermediates(images, [1], stop_early=True, output_fmt="NHWC")
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]
    torch.testing.assert_close(final, stages[0])  # without the norm, which is the last stage's
    torch.testing.assert_close(stages[0], model.forward_intermediates(images, [1], output_fmt="NHWC", intermediates_only=True)[0])


@pytest.mark.parametrize("index", [0, 2, 3])
def test_pruning_keeps_what_the_maps_need(model, images, index):
    expected = model.forward_intermediates(images, [index], intermediates_only=True)[0]
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([index]) == [index]
    assert len(pruned.stages) == index + 1
    torch.testing.assert_close(pruned.forward_intermediates(images, [index], intermediates_only=True)[0], expected)
    assert isinstance(pruned.norm, nn.Identity) == (index < 3)
    assert list(pruned.get_classifier().parameters()) == []
    # A new head fits what is left.
    width = widths("atmnet_xt")[index]
    assert pruned.num_features == pruned.head_hidden_size == width
    pruned.reset_classifier(6, "avg")
    assert pruned(images).shape == (2, 6)
    torch.testing.assert_close(
        pruned.forward_head(pruned.forward_features(images), pre_logits=True), pruned.forward_features(images).mean((1, 2))
    )


def test_pruning_norm_and_head_separately(model, images):
    pruned = copy.deepcopy(model)
    pruned.prune_intermediate_layers([3], prune_head=False)
    torch.testing.assert_close(pruned(images), model(images))
    pruned.prune_intermediate_layers([3], prune_norm=True)
    torch.testing.assert_close(pruned.forward_features(images), model.forward_intermediates(images, output_fmt="NHWC")[1][3])


@pytest.mark.parametrize("offsets", ["axial", "zero", "planar", "three"])
def test_symbolic_tracing_of_a_whole_model(images, offsets):
    sizes = dict(depths=(1, 2), dims=(16, 32), mlp_ratios=(2, 2), share=(2, 4), period=1)
    model = atmnet.ATMNet(num_classes=3, offsets=offsets, **sizes).eval()
    traced = torch.fx.symbolic_trace(model)
    for x in (images, images[:1, :, :48]):  # the graph is of no size
        torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)
    found = create_feature_extractor(model, ["stages.0", "norm"])(images)
    torch.testing.assert_close(found["norm"], model.forward_features(images), rtol=0, atol=0)
    assert found["stages.0"].shape == (2, 16, 24, 16)


@pytest.mark.parametrize("name", ["depths", "dims", "mlp_ratios", "share"])
def test_unlike_numbers_of_stages_are_refused_by_name(name):
    sizes = dict(depths=(1, 2), dims=(16, 32), mlp_ratios=(2, 2), share=(2, 4))
    with pytest.raises(ValueError, match=f"one value for each stage, got .*{name} of 3"):
        atmnet.ATMNet(**sizes | {name: (2, 2, 2)})
