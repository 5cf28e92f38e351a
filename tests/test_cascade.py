"""The stages of Cascade Mask R-CNN, against the same written out."""

from __future__ import annotations

import pytest
import torch
from atmnet.dense.cascade import CascadeRoIHeads
from torch import Tensor
from torchvision.ops import box_iou

DIM, CLASSES = 8, 4  # the background is one of them
SIZES = [(128, 112), (96, 128)]  # of two images, on maps of 128 x 128
THRESHOLDS = 0.5, 0.6, 0.7
WEIGHTS = (10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def heads() -> CascadeRoIHeads:
    torch.manual_seed(0)
    heads = CascadeRoIHeads(DIM, CLASSES, rois_per_image=64)
    for stage in heads.stages:  # predictions that differ from region to region
        torch.nn.init.normal_(stage.box_predictor.cls_score.weight, std=0.3)
        torch.nn.init.normal_(stage.box_predictor.bbox_pred.weight, std=0.3)
    return heads


@pytest.fixture
def features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"p{level}": torch.randn(2, DIM, 128 >> level, 128 >> level, generator=generator) for level in (2, 3, 4, 5, 6)}


@pytest.fixture
def proposals() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    corners = [torch.rand(9, 4, generator=generator) * 60 for _ in SIZES]
    return [torch.cat([c[:, :2], c[:, :2] + 8 + c[:, 2:] / 2], 1) for c in corners]


@pytest.fixture
def targets(proposals) -> list[dict[str, Tensor]]:
    """Two objects in the first image, close to the first two proposals; none in the second."""
    boxes = proposals[0][:2] + torch.tensor([1.0, -1.0, 2.0, 1.0])
    masks = torch.zeros(2, *SIZES[0], dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.clamp(min=0).int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    nothing = dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), masks=torch.zeros(0, *SIZES[1], dtype=torch.uint8))
    return [dict(boxes=boxes, labels=torch.tensor([3, 1]), masks=masks), nothing]


def moved(boxes: Tensor, regression: Tensor, weights: tuple[int, ...]) -> Tensor:
    """Boxes moved by dx, dy in their widths and heights, and scaled by exp(dw), exp(dh)."""
    dx, dy, dw, dh = (regression / torch.tensor(weights)).unbind(1)
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y, w, h = x + dx * w, y + dy * h, w * dw.exp(), h * dh.exp()
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)


def inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    return torch.min(boxes.clamp(min=0), torch.tensor([width, height, width, height]))


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU of boxes pair by pair."""

    def area(boxes: Tensor) -> Tensor:
        return (boxes[:, 2:] - boxes[:, :2]).prod(1)

    overlap = (torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = area(a) + area(b) - overlap
    hull = (torch.max(a[:, 2:], b[:, 2:]) - torch.min(a[:, :2], b[:, :2])).prod(1)
    return overlap / union - (hull - union) / hull


@pytest.mark.parametrize("stage", range(3))
def test_a_proposal_is_positive_from_the_stages_threshold_on(heads, stage):
    truth = torch.tensor([[0.0, 0, 100, 100]])
    overlaps = torch.tensor([0.45, 0.55, 0.65, 0.75])
    proposals = torch.stack([torch.tensor([0, 0, 100, 100 * overlap]) for overlap in overlaps])
    target = dict(boxes=truth, labels=torch.tensor([2]), masks=torch.ones(1, 100, 100))
    chosen, _, labels, _ = heads.stages[stage].select_training_samples([proposals], [target])
    assert torch.equal(chosen[0], torch.cat([proposals, truth]))
    assert labels[0].tolist() == [*(2 if overlap >= THRESHOLDS[stage] else 0 for overlap in overlaps), 2]


@pytest.mark.parametrize("stage", range(3))
def test_refines_by_the_likeliest_class_and_cuts_to_the_image(heads, features, proposals, stage):
    head = heads.stages[stage]
    logits = torch.randn(18, CLASSES)
    logits[:, 0] += 5  # the background is likeliest, and is no class to move by
    regression = 5 * torch.randn(18, 4 * CLASSES)
    expected = []
    for row, box in enumerate(torch.cat(proposals)):
        k = int(logits[row, 1:].argmax()) + 1
        expected.append(inside(moved(box[None], regression[row, None, 4 * k : 4 * k + 4], WEIGHTS[stage]), SIZES[row // 9]))
    refined = head.refine(logits, regression, proposals, SIZES)
    assert [len(boxes) for boxes in refined] == [9, 9]
    torch.testing.assert_close(torch.cat(refined), torch.cat(expected))


def test_refines_a_positive_by_its_label_when_training(heads, proposals):
    logits, regression = torch.zeros(18, CLASSES), torch.randn(18, 4 * CLASSES, requires_grad=True)
    logits[:, 2] = 1
    labels = torch.tensor([3, 0] * 9)
    refined = heads.stages[0].refine(logits, regression, proposals, SIZES, labels)
    by_label = moved(torch.cat(proposals), regression[:, 12:16], WEIGHTS[0])
    by_logits = moved(torch.cat(proposals), regression[:, 8:12], WEIGHTS[0])
    expected = torch.where(labels[:, None] > 0, by_label, by_logits).split(9)
    for boxes, e, size in zip(refined, expected, SIZES, strict=True):
        torch.testing.assert_close(boxes, inside(e, size))
        assert not boxes.requires_grad


@pytest.mark.parametrize("stage", range(3))
def test_losses_of_a_stage(heads, features, proposals, targets, stage):
    head = heads.stages[stage].train()
    losses, refined = head.losses(features, proposals, SIZES, targets)

    sampled = [torch.cat([p, t["boxes"]]) for p, t in zip(proposals, targets, strict=True)]  # all of them: 64 would fit
    overlap, match = box_iou(targets[0]["boxes"], sampled[0]).max(0)
    positive = torch.where(overlap >= THRESHOLDS[stage])[0]
    assert {9, 10} <= set(positive.tolist()) and len(positive) < 11
    labels = torch.zeros(20, dtype=torch.int64)
    labels[positive] = targets[0]["labels"][match[positive]]

    logits, regression = head.predict_boxes(features, sampled, SIZES)
    chosen = torch.stack([regression[i, 4 * labels[i] : 4 * labels[i] + 4] for i in positive])
    boxes = moved(sampled[0][positive], chosen, WEIGHTS[stage])
    truth = targets[0]["boxes"][match[positive]]
    torch.testing.assert_close(losses["loss_classifier"], -logits.log_softmax(1)[torch.arange(20), labels].mean())
    torch.testing.assert_close(losses["loss_box_reg"], 10 * (1 - giou(boxes, truth)).sum() / 20)
    assert losses["loss_mask"] > 0

    assert [len(boxes) for boxes in refined] == [9, 9]  # of the proposals alone: the next stage has the ground truth anew
    expected = head.refine(logits, regression, sampled, SIZES, labels)
    torch.testing.assert_close(refined, [expected[0][:9], expected[1]])


def test_mask_loss_is_of_the_positives(heads, features, proposals, targets):
    """Compare with all-negative logits, whose loss is known."""
    head = heads.stages[0].train()
    torch.nn.init.zeros_(head.mask_predictor.mask_fcn_logits.weight)
    torch.nn.init.constant_(head.mask_predictor.mask_fcn_logits.bias, -20)
    for mask in targets[0]["masks"]:
        mask.zero_()
    losses, _ = head.losses(features, proposals, SIZES, targets)
    assert losses["loss_mask"] < 1e-6
    for mask in targets[0]["masks"]:
        mask.fill_(1)
    losses, _ = head.losses(features, proposals, SIZES, targets)
    torch.testing.assert_close(losses["loss_mask"], torch.tensor(20.0))


def test_each_stage_trains_on_what_the_one_before_refined(heads, features, proposals, targets):
    heads.train()
    detections, losses = heads(features, proposals, SIZES, targets)
    assert detections == []
    expected, boxes = {}, proposals
    for number, (stage, weight) in enumerate(zip(heads.stages, (1, 0.5, 0.25), strict=True), start=1):
        of_stage, boxes = stage.losses(features, boxes, SIZES, targets)
        expected |= {f"{name}_{number}": weight * loss for name, loss in of_stage.items()}
    assert len(losses) == 9
    torch.testing.assert_close(losses, expected)


def test_scores_and_masks_are_means_over_the_stages(heads, features, proposals):
    heads.eval()
    first, second, third = heads.stages
    third.score_thresh = 0.02
    with torch.no_grad():
        detections, losses = heads(features, proposals, SIZES)
        assert losses == {}

        scores, boxes = [], proposals
        for stage in (first, second):
            logits, regression = stage.predict_boxes(features, boxes, SIZES)
            scores.append(logits.softmax(1))
            boxes = stage.refine(logits, regression, boxes, SIZES)
        logits, regression = third.predict_boxes(features, boxes, SIZES)
        mean = (scores[0] + scores[1] + logits.softmax(1)) / 3

        for image, found in enumerate(detections):
            assert len(found["boxes"]) > 3
            for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
                row = 9 * image + (mean[9 * image : 9 * image + 9, label] - score).abs().argmin()
                torch.testing.assert_close(score, mean[row, label])
                last = moved(torch.cat(boxes)[row, None], regression[row, None, 4 * label : 4 * label + 4], WEIGHTS[2])
                torch.testing.assert_close(box[None], inside(last, SIZES[image]))

        logits = [stage.predict_masks(features, [found["boxes"] for found in detections], SIZES) for stage in heads.stages]
        labels = torch.cat([found["labels"] for found in detections])
        masks = sum(of_stage.sigmoid()[torch.arange(len(labels)), labels] for of_stage in logits) / 3
        torch.testing.assert_close(torch.cat([found["masks"] for found in detections])[:, 0], masks)


def test_finds_nothing_where_nothing_is_proposed(heads, features):
    heads.eval()
    with torch.no_grad():
        detections, _ = heads(features, [torch.zeros(0, 4), torch.zeros(0, 4)], SIZES)
    for found in detections:
        assert found["boxes"].shape == (0, 4) and found["masks"].shape == (0, 1, 28, 28) and len(found["scores"]) == 0
