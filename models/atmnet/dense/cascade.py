"""Cascade Mask R-CNN's heads (Cai and Vasconcelos): three stages, each on the boxes that the one before has refined. They are as Swin's
configuration has them, but for pooling and initialisation, which are torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from .roi import BOX_FEATURES, BOX_SIZE, box_predictor, mask_branch, roi_align

Target = dict[str, Tensor]
Sizes = Sequence[tuple[int, int]]  # height and width of every image

IOU_THRESHOLDS = 0.5, 0.6, 0.7
CODER_WEIGHTS = (10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)
LOSS_WEIGHTS = 1.0, 0.5, 0.25
BOX_LOSS_WEIGHT = 10.0


class CascadeStage(RoIHeads):
    """torchvision's RoI heads with a convolutional box head, GIoU loss, and refinement of the proposals for the next stage.

    ``num_classes`` counts the background, class 0.
    """

    def __init__(self, dim: int, num_classes: int, iou_threshold: float, coder_weights: tuple[float, ...], rois_per_image: int) -> None:
        super().__init__(
            box_roi_pool=roi_align(BOX_SIZE),
            box_head=FastRCNNConvFCHead((dim, BOX_SIZE, BOX_SIZE), [dim] * 4, [BOX_FEATURES], norm_layer=nn.BatchNorm2d),
            box_predictor=box_predictor(num_classes),
            fg_iou_thresh=iou_threshold,
            bg_iou_thresh=iou_threshold,
            batch_size_per_image=rois_per_image,
            positive_fraction=0.25,
            bbox_reg_weights=coder_weights,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            **mask_branch(dim, num_classes),
        )

    def predict_boxes(self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes) -> tuple[Tensor, Tensor]:
        """Logits ``[N, classes]`` and regression ``[N, 4 * classes]`` of all images' proposals."""
        return self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, sizes)))

    def predict_masks(self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sizes) -> Tensor:
        """Logits ``[N, classes, 28, 28]``."""
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, sizes)))

    def regress(self, regression: Tensor, labels: Tensor, proposals: list[Tensor]) -> Tensor:
        """The proposals ``[N, 4]`` moved by the regression of the classes ``labels [N]``."""
        of_class = rearrange(regression, "n (k box) -> n k box", box=4)[torch.arange(len(labels), device=labels.device), labels]
        return self.box_coder.decode_single(of_class, torch.cat(proposals))

    def refine(
        self, logits: Tensor, regression: Tensor, proposals: list[Tensor], sizes: Sizes, labels: Tensor | None = None
    ) -> list[Tensor]:
        """The proposals moved by the likeliest class, or by their label's where it is not the background, and cut to the image."""
        foreground = 1 + logits[:, 1:].argmax(1)
        if labels is not None:
            foreground = torch.where(labels > 0, labels, foreground)
        boxes = self.regress(regression.detach(), foreground, proposals).split([len(p) for p in proposals])
        return [clip_boxes_to_image(b, size) for b, size in zip(boxes, sizes, strict=True)]

    def losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes, targets: list[Target]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return this stage's losses, and the proposals for the next."""
        proposals, matches, labels_per_image, _ = self.select_training_samples(proposals, targets)
        labels = torch.cat(labels_per_image)
        logits, regression = self.predict_boxes(features, proposals, sizes)

        positive = [torch.where(of_image > 0)[0] for of_image in labels_per_image]
        matched = [match[index] for match, index in zip(matches, positive, strict=True)]
        truth = torch.cat([target["boxes"][match] for target, match in zip(targets, matched, strict=True)])
        boxes = self.regress(regression, labels, proposals)[labels > 0]

        masked = [p[index] for p, index in zip(proposals, positive, strict=True)]
        mask_logits = self.predict_masks(features, masked, sizes)
        losses = dict(
            loss_classifier=nn.functional.cross_entropy(logits, labels),
            loss_box_reg=BOX_LOSS_WEIGHT * generalized_box_iou_loss(boxes, truth, reduction="sum") / len(labels),
            loss_mask=maskrcnn_loss(mask_logits, masked, [t["masks"] for t in targets], [t["labels"] for t in targets], matched),
        )
        refined = self.refine(logits, regression, proposals, sizes, labels)
        return losses, [r[_is_new(p, target["boxes"])] for r, p, target in zip(refined, proposals, targets, strict=True)]


def _is_new(proposals: Tensor, truth: Tensor) -> Tensor:
    """Tell which proposals are not the ground truth that training has appended: the next stage appends it anew."""
    return ~(rearrange(proposals, "n box -> n 1 box") == truth).all(2).any(1)


class CascadeRoIHeads(nn.Module):
    """Three stages in place of torchvision's RoI heads. ``num_classes`` counts the background, class 0."""

    def __init__(self, dim: int, num_classes: int, rois_per_image: int) -> None:
        super().__init__()
        self.stages: Any = nn.ModuleList(
            CascadeStage(dim, num_classes, threshold, weights, rois_per_image)
            for threshold, weights in zip(IOU_THRESHOLDS, CODER_WEIGHTS, strict=True)
        )

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes, targets: list[Target] | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections when evaluating, losses when training; the other is empty."""
        if self.training:
            assert targets is not None
            return [], self.losses(features, proposals, sizes, targets)
        return self.detect(features, proposals, sizes), {}

    def losses(self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes, targets: list[Target]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for number, (stage, weight) in enumerate(zip(self.stages, LOSS_WEIGHTS, strict=True), start=1):
            of_stage, proposals = stage.losses(features, proposals, sizes, targets)
            losses |= {f"{name}_{number}": weight * loss for name, loss in of_stage.items()}
        return losses

    def detect(self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes) -> list[dict[str, Tensor]]:
        """The last stage's boxes, with scores and masks averaged over the stages."""
        *_, last = self.stages
        scores = []
        for stage in self.stages:
            logits, regression = stage.predict_boxes(features, proposals, sizes)
            scores.append(logits.softmax(1))
            if stage is not last:
                proposals = stage.refine(logits, regression, proposals, sizes)
        mean = torch.stack(scores).mean(0)
        # torchvision takes logits here, and the softmax of log(mean) is the mean.
        boxes, kept, labels = last.postprocess_detections(mean.log(), regression, proposals, sizes)
        masks = [maskrcnn_inference(stage.predict_masks(features, boxes, sizes), labels) for stage in self.stages]
        return [
            dict(boxes=b, scores=s, labels=k, masks=torch.stack(m).mean(0)) for b, s, k, *m in zip(boxes, kept, labels, *masks, strict=True)
        ]
