"""The classifiers under timm's model contract, and what a training program reads off them."""

from __future__ import annotations

import copy
import subprocess
import sys

import atmnet
import pytest
import timm
import torch
import torch.distributed as dist
from atmnet.costs import macs
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

NAMES = ["atmnet_xt", "atmnet_t", "atmnet_s", "atmnet_b", "atmnet_l"]
PARAMETERS = dict(zip(NAMES, [15.35, 27.15, 38.63, 52.15, 76.24], strict=True))  # M
MACS = dict(zip(NAMES, [2.180, 3.972, 6.913, 10.148, 12.386], strict=True))  # G at 224 x 224
DEPTHS = dict(zip(NAMES, [(2, 2, 4, 2), (2, 3, 10, 3), (3, 4, 18, 3), (3, 8, 27, 3), (3, 4, 24, 3)], strict=True))
WIDTHS = {name: (96, 192, 384, 768) if name == "atmnet_l" else (64, 128, 320, 512) for name in NAMES}
# Blocks that make offsets, per stage: every second (xT, T) or sixth (S, B, L) from the first on, but never a last one.
OFFSET_BLOCKS = {
    "atmnet_xt": [[0], [0], [0, 2], [0]],
    "atmnet_t": [[0], [0], [0, 2, 4, 6, 8], [0]],
    "atmnet_s": [[0], [0], [0, 6, 12], [0]],
    "atmnet_b": [[0], [0, 6], [0, 6, 12, 18, 24], [0]],
    "atmnet_l": [[0], [0], [0, 6, 12, 18], [0]],
}


def create(name: str = "atmnet_xt", seed: int = 0, **kwargs) -> atmnet.ATMNet:
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs)


def on_meta(name: str, **kwargs) -> atmnet.ATMNet:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_structure(name):
    model = on_meta(name)
    assert tuple(len(stage.blocks) for stage in model.stages) == DEPTHS[name]
    made = [[j for j, block in enumerate(stage.blocks) if block.offset is not None] for stage in model.stages]
    assert made == OFFSET_BLOCKS[name]
    ratios = [stage.blocks[0].mlp.fc1.out_features // stage.blocks[0].mlp.fc1.in_features for stage in model.stages]
    assert ratios == ([8, 8, 4, 4] if name in ("atmnet_s", "atmnet_b") else [4, 4, 4, 4])
    assert [stage.blocks[0].offset.share for stage in model.stages] == [2, 4, 4, 8]
    assert model.num_features == model.head_hidden_size == WIDTHS[name][-1]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_macs(name):
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], abs=0.005)
    assert macs(model) / 1e9 == pytest.approx(MACS[name], abs=0.0005)


def test_macs_of_other_sizes_and_models():
    assert macs(on_meta("atmnet_l"), (384, 384)) / 1e9 == pytest.approx(36.4, abs=0.05)  # the paper's table 1
    assert macs(on_meta("resnet50")) / 1e9 == pytest.approx(4.09, abs=0.005)
    model = create(features_only=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert macs(model, (64, 32)) == macs(model, (32, 64)) > 0
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward_reach_every_parameter(name):
    model = create(name, num_classes=7, drop_path_rate=0.1).train()
    logits = model(torch.randn(2, 3, 40, 64))
    assert logits.shape == (2, 7)
    logits.square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert without == []


def test_gradients_have_their_parameters_strides():
    """Others DDP copies, and warns."""
    model = timm.create_model("atmnet_xt", num_classes=3, depths=(1, 1), dims=(16, 32), mlp_ratios=(2, 2), share=(2, 2))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    other = [name for name, p in model.named_parameters() if p.grad.stride() != p.stride()]
    assert other == []


def test_any_input_size():
    model = create(num_classes=5)
    for batch, height, width in ((1, 3, 3), (3, 3, 9), (2, 7, 5), (1, 33, 129), (2, 130, 3), (0, 32, 32)):
        x = torch.randn(batch, 3, height, width, requires_grad=True)
        logits = model(x)
        assert logits.shape == (batch, 5)
        logits.sum().backward()
        assert logits.isfinite().all() and x.grad.isfinite().all()
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):  # the stem needs three pixels
        model(torch.randn(1, 3, 2, 32))


def test_images_of_a_batch_do_not_mix(images):
    model = create().eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images)[1:], model(images[1:]), rtol=1e-4, atol=1e-6)


def test_memory_format_does_not_matter(images):
    model = create().eval()
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(model.to(memory_format=torch.channels_last)(images), expected, rtol=1e-4, atol=1e-6)


def test_tokens_and_their_gradients_stay_channels_last(images):
    """One transposition of tokens would cost as much as a kernel."""
    model = create().train()
    orders = []

    def look(_, before, after):
        orders.extend(t.is_contiguous() for t in (*before, *after) if isinstance(t, torch.Tensor))

    for stage in model.stages:
        for block in stage.blocks:
            block.register_forward_hook(look)
            block.register_full_backward_hook(look)
    model(images).sum().backward()
    assert len(orders) == 2 * (10 * 2 + 5 + 5) and all(orders)  # with gradients, of x and y, and of offsets made and offsets given


def test_in_chans():
    model = create(in_chans=5, num_classes=2)
    assert model.in_chans == 5
    assert model(torch.randn(1, 5, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_device_and_dtype(dtype):
    model = create(device="meta", dtype=dtype)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", dtype)}
    model.eval().reset_classifier(3)
    assert (model.head.fc.weight.device.type, model.head.fc.weight.dtype) == ("meta", dtype)
    assert not any(module.training for module in model.modules())
    assert model(torch.empty(2, 3, 32, 32, device="meta", dtype=dtype)).dtype == dtype


def test_initialisation():
    model = create(seed=1).requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std() == pytest.approx(0.02, rel=0.15), name
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            fan_out = 9 if "peg" in name else module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15), name
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5 and (module.weight == 1).all() and not module.bias.any()
    for stage in model.stages:
        assert stage.blocks[0].offset.eps == 1e-5
        assert stage.blocks[0].offset.weight.std() == pytest.approx(0.02, rel=0.15)
    model.reset_classifier(100)
    assert model.head.fc.weight.detach().std() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_drop_path_rises_linearly_over_all_blocks(name):
    model = on_meta(name, drop_path_rate=0.3)
    rates = [block.drop_path.drop_prob if isinstance(block.drop_path, DropPath) else 0 for stage in model.stages for block in stage.blocks]
    last = sum(DEPTHS[name]) - 1
    assert rates == pytest.approx([0.3 * i / last for i in range(last + 1)])


def test_drop_path_drops_whole_branches_of_some_samples():
    model = create(drop_path_rate=0.5, num_classes=10).train()
    x = torch.randn(1, 3, 32, 32).expand(16, -1, -1, -1)
    with torch.no_grad():
        assert len(model(x).unique(dim=0)) > 1
        assert len(model.eval()(x).round(decimals=4).unique(dim=0)) == 1


def test_dropout_rates():
    model = create(drop_rate=0.25, proj_drop_rate=0.5)
    assert model.head.drop.p == 0.25
    block = model.stages[2].blocks[1]
    assert block.mixer.proj_drop.p == block.mlp.drop1.p == block.mlp.drop2.p == 0.5


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", ""])
def test_global_pool(images, pool):
    model = create(global_pool=pool, num_classes=0).eval()
    with torch.no_grad():
        tokens = model.forward_features(images)
        mean, most = tokens.mean((1, 2)), tokens.amax((1, 2))
        expected = {"avg": mean, "max": most, "avgmax": (mean + most) / 2, "catavgmax": torch.cat([mean, most], 1), "": tokens}[pool]
        torch.testing.assert_close(model(images), expected)
        if pool:
            assert model.head_hidden_size == expected.shape[1]
            model.reset_classifier(9)  # keeps the pooling
            assert model(images).shape == (2, 9)


def test_head(images):
    model = create(num_classes=10).eval()
    with torch.no_grad():
        tokens = model.forward_features(images)
        assert tokens.shape == (2, 2, 2, 512)  # channels last, as output_fmt says
        assert model.output_fmt == "NHWC"
        pooled = model.forward_head(tokens, pre_logits=True)
        torch.testing.assert_close(pooled, tokens.mean((1, 2)))
        torch.testing.assert_close(model.get_classifier()(pooled), model(images))
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(images), pooled)
        model.reset_classifier(4, "max")
        assert (model.num_classes, model.get_classifier().out_features) == (4, 4)
        torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens.amax((1, 2)))


def test_grad_checkpointing_recomputes_and_changes_nothing(images):
    results, calls = [], []
    for enable in (False, True):
        model = create(drop_path_rate=0.3).train()
        model.set_grad_checkpointing(enable)
        count = []
        for stage in model.stages:
            for block in stage.blocks:
                for module in (block, *([block.offset] if block.offset is not None else [])):
                    module.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(1)  # of the paths dropped
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
        calls.append(len(count))
    assert calls == [15, 30]  # 10 blocks, 5 of which make offsets
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    model.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in model.stages)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
def test_fsdp2_by_blocks_changes_nothing(images, one_process, checkpointing):
    model = atmnet.ATMNet(num_classes=5, depths=(1, 3), dims=(16, 32), mlp_ratios=(2, 2), share=(2, 4), period=1)
    sharded = copy.deepcopy(model)
    sharded.set_grad_checkpointing(checkpointing)
    mesh = init_device_mesh("cpu", (1,))
    for module in [block for stage in sharded.stages for block in stage.blocks] + [sharded]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    results = []
    for network in (model, sharded):
        logits = network(images)
        logits.square().sum().backward()
        results.append([logits, *(p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in network.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kwargs", [{}, {"features_only": True}], ids=["classifier", "features"])
def test_weight_decay_spares_norms_biases_and_positions(kwargs):
    model = create(**kwargs)
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, p in model.named_parameters():
        spared = "peg" in name or "norm" in name or name.endswith("bias")
        assert decay[id(p)] == (0 if spared else 0.05), name
    assert decay[id(next(p for name, p in model.named_parameters() if name.endswith("offset.weight")))] == 0.05
    assert len(model.no_weight_decay()) == 4


@pytest.mark.parametrize("name", NAMES)
def test_layer_groups_follow_the_order_of_computation(name):
    model = on_meta(name)
    layer = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layer) == {name for name, _ in model.named_parameters()}
    blocks = [(i, j) for i, depth in enumerate(DEPTHS[name]) for j in range(depth)]
    for at, (i, j) in enumerate(blocks, start=1):  # layer 0 is the stem
        prefixes = (f"stages.{i}.blocks.{j}.", *((f"stages.{i}.peg.", f"stages.{i}.downsample.") if j == 0 else ()))
        assert {layer[name] for name in layer if name.startswith(prefixes)} == {at}
    assert layer["stem.weight"] == layer["stem.bias"] == 0
    assert layer["norm.weight"] == len(blocks)
    assert layer["head.fc.weight"] == len(blocks) + 1
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert [coarse["stem.bias"], *(coarse[f"stages.{i}.blocks.1.norm1.weight"] for i in range(4))] == [0, 1, 2, 3, 4]


def test_layer_decay_of_timm():
    model = create()
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.head.fc.weight)] == 1
    assert scale[id(model.stages[3].blocks[1].norm1.weight)] == 0.5
    assert scale[id(model.stem.weight)] == 0.5**11


@pytest.mark.parametrize("name", NAMES)
def test_default_cfg(name):
    model = on_meta(name)
    assert timm.is_model(name)
    cfg = model.default_cfg
    assert cfg is model.pretrained_cfg
    assert (cfg["architecture"], cfg["num_classes"], cfg["input_size"], cfg["pool_size"]) == (name, 1000, (3, 224, 224), (7, 7))
    config = timm.data.resolve_data_config(model=model)
    assert (config["interpolation"], config["crop_pct"], config["mean"]) == ("bicubic", 0.875, timm.data.IMAGENET_DEFAULT_MEAN)
    parameters = dict(model.named_parameters())
    assert f"{cfg['classifier']}.weight" in parameters and f"{cfg['first_conv']}.weight" in parameters


def test_there_are_no_weights_to_download():
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model("atmnet_xt", pretrained=True)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="no_such_argument"):
        timm.create_model("atmnet_xt", no_such_argument=1)


def test_canonical_name():
    assert [atmnet.canonical_name(name) for name in ("atmnet-b", "ATMNet-xT", "atmnet_l")] == ["atmnet_b", "atmnet_xt", "atmnet_l"]
    assert atmnet.canonical_name("vit_base_patch16_224.augreg-in1k") == "vit_base_patch16_224.augreg-in1k"
    assert list(atmnet.VARIANTS) == NAMES


def test_runs_without_triton_and_says_nothing():
    code = """
import sys, warnings
sys.modules["triton"] = None
import timm, torch
warnings.simplefilter("error")
import atm_triton, atmnet
model = timm.create_model("atmnet_xt", num_classes=3)
model(torch.randn(1, 3, 32, 32)).sum().backward()
assert model.stem.weight.grad.isfinite().all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
