"""Detectors as a user trains and evaluates them: losses, detections, gradients, dtypes, sizes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from atmnet.dense.detection import DETECTORS, create_detector
from atmnet.dense.roi import roi_align
from test_models_compile import Compiled, pools_by_parity, twelve_sizes
from torch import Tensor, nn

RCNNS = [name for name in DETECTORS if name != "retinanet"]
CLASSES = 3
Target = dict[str, Tensor]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny(detector: str, **kwargs: Any) -> nn.Module:
    small = dict(min_size=96, max_size=128, dim=16, rois_per_image=16, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    return create_detector("atmnet_xt", detector, num_classes=CLASSES, **small | kwargs)


def sample(height: int, width: int, boxes: list[list[float]], labels: list[int]) -> tuple[Tensor, Target]:
    """An image with bright rectangles on noise."""
    image, masks = 0.3 * torch.rand(3, height, width), torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2), label in zip(masks, boxes, labels, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
        image[label - 1, mask > 0] = 1
    return image, dict(boxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.int64), masks=masks)


def batch(*samples: tuple[Tensor, Target]) -> tuple[list[Tensor], list[Target]]:
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def objects() -> tuple[Tensor, Target]:
    return sample(96, 96, [[10, 10, 50, 40], [50, 50, 80, 90]], [1, CLASSES])


def nothing() -> tuple[Tensor, Target]:
    return sample(96, 80, [], [])


def keep_all_scores(model: nn.Module) -> None:
    """An untrained detector is sure of nothing."""
    for module in model.modules():
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0


@pytest.mark.parametrize(
    "detector, neck, steps, names",
    [
        ("retinanet", "fpn", 40, {"classification", "bbox_regression"}),
        ("mask-rcnn", "atmfpn", 16, {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}),
        (
            "cascade-mask-rcnn",
            "fpn",
            16,
            {f"loss_{part}_{stage}" for part in ("classifier", "box_reg", "mask") for stage in (1, 2, 3)}
            | {"loss_objectness", "loss_rpn_box_reg"},
        ),
    ],
)
def test_losses_fall(detector, neck, steps, names):
    model = tiny(detector, neck=neck).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, targets = batch(objects())
    history = []
    for _ in range(steps):
        losses = model(images, targets)
        assert set(losses) == names
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(sum(losses.values()).item())
    assert sum(history[-4:]) / 4 < 0.75 * history[0]


@pytest.mark.parametrize("detector", DETECTORS)
def test_detections_at_odd_sizes(detector):
    model = tiny(detector).eval()
    keep_all_scores(model)
    images = [torch.rand(3, 333, 517), torch.rand(3, 70, 51)]
    with torch.no_grad():
        detections = model(images)
    for image, found in zip(images, detections, strict=True):
        height, width = image.shape[1:]
        assert 0 < len(found["boxes"]) <= 100
        assert (found["boxes"] >= 0).all() and (found["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert set(found["labels"].tolist()) <= set(range(1, CLASSES + 1))
        if detector in RCNNS:
            assert found["masks"].shape == (len(found["boxes"]), 1, height, width)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("samples", [(objects, nothing), (nothing, nothing)], ids=["some", "none"])
def test_every_parameter_has_a_gradient(detector, samples):
    """Data parallelism waits for all of them, also where a batch has no object."""
    model = tiny(detector, neck="atmfpn").train()
    sum(model(*batch(*(make() for make in samples))).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or samples[0] is nothing, name


@pytest.mark.parametrize("detector", DETECTORS)
def test_boxes_keep_their_precision_under_autocast(detector):
    """Heads that move every box by a known amount: under bfloat16 the boxes are the same. In bfloat16 they would be a pixel off."""
    model = tiny(detector, min_size=300, max_size=400).eval()
    keep_all_scores(model)
    regressors = [module for name, module in model.named_modules() if name.rpartition(".")[2] in ("bbox_reg", "bbox_pred")]
    assert len(regressors) == {"retinanet": 1, "mask-rcnn": 2, "cascade-mask-rcnn": 4}[detector]
    for regressor in regressors:
        nn.init.zeros_(regressor.weight)
        nn.init.constant_(regressor.bias, 0.0625)
    scorers = [module for name, module in model.named_modules() if name.rpartition(".")[2] in ("cls_logits", "cls_score")]
    for scorer in scorers:  # in the same order in both dtypes: by where the boxes come from
        nn.init.zeros_(scorer.weight)
    images = [torch.rand(3, 301, 389)]
    with torch.no_grad():
        exact = model(images)[0]
        with torch.autocast("cpu", torch.bfloat16):
            found = model(images)[0]
    assert len(exact["boxes"]) == 100 and len(exact["boxes"].unique(dim=0)) > 20
    for name in ("boxes", "scores"):
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], exact[name], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("detector", DETECTORS)
def test_layers_run_in_bfloat16_and_losses_in_float32_under_autocast(detector):
    model = tiny(detector).train()
    convolutions = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            module.register_forward_hook(lambda _, __, output, name=name: convolutions.update({name: output.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*batch(objects()))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {part for part in ("backbone.", "neck.", "head") if any(part in name for name in convolutions)} == {"backbone.", "neck.", "head"}
    assert set(convolutions.values()) == {torch.bfloat16}


def test_regions_are_read_at_the_maps_strides_whatever_was_padded():
    """The first image has 65 pixels in a batch of 96."""
    maps = {f"p{level}": torch.randn(1, 4, 96 >> level, 96 >> level) for level in (2, 3, 4, 5)}
    boxes = [torch.tensor([[8.0, 8, 60, 60]])]
    torch.testing.assert_close(roi_align(7)(maps, boxes, [(65, 65)]), roi_align(7)(maps, boxes, [(96, 96)]))


def test_retinanets_labels_begin_at_one():
    model = tiny("retinanet")
    assert model.head.classification_head.cls_logits.out_channels == 9 * CLASSES  # none is spent on the background
    model.eval()
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.view(9, CLASSES)[:, 1] = 5.0
        found = model([torch.rand(3, 96, 96)])[0]
    assert set(found["labels"].tolist()) == {2}
    model.train()
    images, targets = batch(sample(96, 96, [[10, 10, 50, 40]], [3]))
    model(images, targets)["classification"].backward()
    gradient = model.head.classification_head.cls_logits.bias.grad.view(9, CLASSES).sum(0)
    assert gradient[2] < gradient[0] < gradient[1]  # only the third class is wanted, and the second was made likely


def test_sizes_are_drawn_in_training_and_the_last_one_in_evaluation():
    model = tiny("retinanet", min_size=(64, 96, 128), max_size=160)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[2:])))
    image, target = objects()
    for _ in range(20):
        model([image], [target])
    assert set(seen) == {(64, 64), (96, 96), (128, 128)}
    seen.clear()
    with torch.no_grad():
        model.eval()([image, torch.rand(3, 50, 100)])
    assert seen == [(128, 160)]  # the second one is as long as may be, and 80 high


def test_images_are_normalised_as_the_backbone_expects():
    cfg = dict(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    model = tiny("mask-rcnn", pretrained_cfg_overlay=cfg).eval()
    (images, _) = model.transform([torch.ones(3, 96, 96)])
    torch.testing.assert_close(images.tensors[0, :, 0, 0], torch.tensor([5.0, 3.0, 7 / 3]))


def test_a_copy_is_a_detector_of_its_own():
    """Copies are made, as the averaged model of a training is."""
    model = tiny("cascade-mask-rcnn").train()
    twin = copy.deepcopy(model)
    losses = []
    for one in (model, twin):
        torch.manual_seed(3)
        losses.append({name: loss.item() for name, loss in one(*batch(objects())).items()})
    assert losses[0] == losses[1]


@pytest.mark.parametrize("detector", DETECTORS)
def test_refuses_labels_outside_the_classes(detector):
    model = tiny(detector).train()
    images, targets = batch(nothing(), objects())
    for wrong in (0, CLASSES + 1, -1):
        targets[1]["labels"][1] = wrong
        with pytest.raises(ValueError, match=rf"targets\[1\] has labels \[{wrong}\]; 3 classes are 1 to 3"):
            model(images, targets)
        with pytest.raises(ValueError, match=rf"\[{wrong}\]"):
            model(images, targets=targets)


def test_names_what_it_knows():
    with pytest.raises(ValueError, match="unknown detector 'faster-rcnn'; there are retinanet, mask-rcnn, cascade-mask-rcnn"):
        tiny("faster-rcnn")
    with pytest.raises(ValueError, match="unknown neck 'pafpn'; there are fpn, atmfpn"):
        tiny("mask-rcnn", neck="pafpn")


@pools_by_parity
@pytest.mark.parametrize("detector", [pytest.param("retinanet", marks=pytest.mark.exhaustive), "mask-rcnn"])
def test_the_pyramid_compiles_whole(detector):
    """The pyramid is what train/coco.py compiles. Much smaller images would make the coarsest map one pixel, which is another graph."""
    pyramid = create_detector("test_resnet", detector, dim=16).backbone.train()
    compiled = Compiled(pyramid, "aot_eager")
    for height, width in twelve_sizes(300, 600):
        images = torch.randn(2, 3, height, width)
        assert {name: y.shape for name, y in compiled(images).items()} == {name: y.shape for name, y in pyramid(images).items()}
    assert compiled.compilations <= 2
