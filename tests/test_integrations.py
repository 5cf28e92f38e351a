"""The registered names in other libraries: segmentation_models_pytorch, torchvision, timm's own tests and training script."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from atmnet.dense.layers import as_layers
from PIL import Image
from timm.data import ImageDataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), mlp_ratios=(2, 2, 2, 2))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["atmnet_xt", "atmnet_l"])
def test_what_timms_model_tests_ask_of_a_configuration(name: str):
    """Shapes at its image size, without a head, in another dtype; on meta tensors."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        config = model.default_cfg
        images = torch.empty(1, *config["input_size"])
        features = model.forward_features(images)
        assert features.shape == (1, *config["pool_size"], model.num_features)
        assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
        model.reset_classifier(0)
        assert model(images).shape == (1, model.head_hidden_size)
        model.to(torch.bfloat16).reset_classifier(0, "")
        assert model(images.to(torch.bfloat16)).shape == features.shape
        maps = model.forward_intermediates(images.to(torch.bfloat16), intermediates_only=True)
        assert [(y.shape[1], 224 // y.shape[2]) for y in maps] == [(info["num_chs"], info["reduction"]) for info in model.feature_info]


@pytest.mark.parametrize("architecture,depth", [("Unet", 5), ("Unet", 4), ("FPN", 5), ("UPerNet", 4), ("Segformer", 5)])
def test_segmentation_models_pytorch(architecture: str, depth: int):
    smp = pytest.importorskip("segmentation_models_pytorch")
    channels = {"decoder_channels": [16] * depth} if architecture == "Unet" else {}
    model = getattr(smp, architecture)(
        encoder_name="tu-atmnet_t", encoder_weights=None, encoder_depth=depth, classes=4, **channels, **SMALL
    ).train()
    assert model.encoder.out_channels == [3, 0, *SMALL["dims"]][: depth + 1]
    logits = model(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 4, 64, 96)
    logits.square().mean().backward()
    assert [name for name, p in model.encoder.named_parameters() if p.grad is None] == []


def test_torchvisions_backbone_with_fpn():
    model = timm.create_model("atmnet_t", **SMALL)
    backbone = BackboneWithFPN(as_layers(model), {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}, list(SMALL["dims"]), out_channels=16)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for ours, expected in zip(backbone.body(images).values(), model.forward_intermediates(images)[1], strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert [tuple(y.shape[2:]) for y in backbone(images).values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    detector = RetinaNet(backbone, num_classes=2, anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((1.0,),) * 5))
    losses = detector(list(images), [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}])
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == ["norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"]


def test_a_step_of_timms_training_script(tmp_path: Path):
    """Steps that train.py of timm takes with a model, in its order and with its arguments."""
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for image in range(2):
            Image.new("RGB", (40, 36), (200 * number, 90 * image, 9)).save(tmp_path / "data" / name / f"{image}.png")
    factory = dict(drop_rate=0.1, drop_path_rate=0.1, drop_block_rate=None, global_pool=None, bn_momentum=None, bn_eps=None)
    model = timm.create_model("atmnet_t", in_chans=3, num_classes=2, scriptable=False, checkpoint_path="", **factory, **SMALL)
    model.set_grad_checkpointing(enable=True)
    config = resolve_data_config({"img_size": 48}, model=model, verbose=False)
    assert config["input_size"] == (3, 48, 48)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    ema, scaler = ModelEmaV3(model, decay=0.5), NativeScaler(device="cpu")
    saver = CheckpointSaver(model, optimizer, model_ema=ema, amp_scaler=scaler, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    loader = create_loader(
        ImageDataset(str(tmp_path / "data")),
        config["input_size"],
        batch_size=4,
        is_training=True,
        auto_augment="rand-m9-mstd0.5",
        num_workers=0,
        use_prefetcher=False,
        persistent_workers=False,
    )
    criterion = LabelSmoothingCrossEntropy(0.1)
    before = model.stem.weight.detach().clone()
    model.train()
    for images, targets in loader:
        loss = criterion(model(images), targets)
        scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
        ema.update(model, step=1)
    assert loss.isfinite() and not torch.equal(model.stem.weight, before)
    saver.save_checkpoint(epoch=0, metric=1.0)
    again = timm.create_model("atmnet_t", num_classes=2, checkpoint_path=str(tmp_path / "last.pth.tar"), **SMALL)
    assert torch.equal(again.stem.weight, ema.module.stem.weight)
