"""Detectors: torchvision's RetinaNet and Mask R-CNN, and Cascade Mask R-CNN, on any timm backbone and a neck."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ..variants import ATMNetFeatures
from .backbone import Backbone
from .cascade import CascadeRoIHeads
from .necks import NECKS
from .roi import BOX_SIZE, box_predictor, in_float32, mask_branch, roi_align

DETECTORS = "retinanet", "mask-rcnn", "cascade-mask-rcnn"
ANCHORS_RPN, ANCHORS_RETINANET = 3, 9  # torchvision's, per place: three shapes, and these in three sizes


def create_detector(
    backbone: str = "atmnet_t",
    detector: str = "mask-rcnn",
    neck: str = "fpn",
    num_classes: int = 80,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    dim: int = 256,
    rois_per_image: int = 512,
    **backbone_kwargs: Any,
) -> RetinaNet | MaskRCNN:
    """A detector under torchvision's contract: ``model(images, targets)`` gives a dictionary of losses when training, and ``model(images)``
    one dictionary of detections per image when evaluating.

    Args:
        backbone: Name of a timm model.
        detector: ``"retinanet"``, ``"mask-rcnn"`` or ``"cascade-mask-rcnn"``.
        neck: ``"fpn"`` or ``"atmfpn"``.
        num_classes: Classes of objects; their labels are 1 to ``num_classes``.
        min_size: Pixels that an image's shorter side is resized to. Of several sizes training draws one per image, and evaluation takes the
            last.
        max_size: Pixels that the longer side may not exceed.
        dim: Channels of the pyramid and of the convolutions on it.
        rois_per_image: Regions of an image that each R-CNN head is trained on.
        **backbone_kwargs: Passed on to ``timm.create_model``: ``drop_path_rate``, ``pretrained``, ...
    """
    _one_of("detector", detector, DETECTORS)
    _one_of("neck", neck, NECKS)
    pyramid = Pyramid(backbone, neck, dim, 3 if detector == "retinanet" else 2, **backbone_kwargs)
    data = resolve_model_data_config(pyramid.backbone.net)
    images = dict(min_size=min_size, max_size=max_size, image_mean=data["mean"], image_std=data["std"])
    model: RetinaNet | MaskRCNN
    if detector == "retinanet":
        head = in_float32(RetinaNetHead(dim, ANCHORS_RETINANET, num_classes))
        model = RetinaNetFromOne(pyramid, num_classes, head=head, detections_per_img=100, **images)
    else:
        model = MaskRCNN(
            pyramid,
            rpn_head=in_float32(RPNHead(dim, ANCHORS_RPN)),
            box_roi_pool=roi_align(BOX_SIZE),
            box_predictor=box_predictor(num_classes + 1),
            box_batch_size_per_image=rois_per_image,
            **mask_branch(dim, num_classes + 1),
            **images,
        )
        if detector == "cascade-mask-rcnn":
            model.roi_heads = CascadeRoIHeads(dim, num_classes + 1, rois_per_image)
    model.register_forward_pre_hook(partial(_check_labels, num_classes), with_kwargs=True)
    return model


class Pyramid(nn.Module):
    """Backbone, neck, and the maps beyond it, as torchvision's detectors take them: ``{"p2": [B, dim, H / 4, W / 4], "p3": ...}`` from
    level ``first`` on, where level l has stride 2^l.

    From level 2, the last map is the neck's coarsest, subsampled; from level 3, the last two are convolutions of the backbone's coarsest.
    """

    def __init__(self, name: str, neck: str, dim: int, first: int, **kwargs: Any) -> None:
        super().__init__()
        self.backbone = Backbone(name, **kwargs)
        self.first, self.out_channels = first, dim
        channels = self.backbone.channels[first - 2 :]
        self.neck = NECKS[neck](channels, dim)
        self.beyond: Any = LastLevelMaxPool()
        if first > 2:
            self.beyond = LastLevelP6P7(channels[-1], dim)
            self.beyond.use_P5 = False  # torchvision would, were the backbone's coarsest map as wide as the pyramid
        if first > 2 and isinstance(self.backbone.net, ATMNetFeatures):
            self.backbone.net.norms["0"] = nn.Identity()  # data parallelism waits for the gradient of every parameter

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(images)[self.first - 2 :]
        pyramid, _ = self.beyond(self.neck(maps), maps, [])
        # In float32 under autocast too: anchors are made, and regions pooled, in the dtype of the maps.
        return OrderedDict((f"p{level}", y.float()) for level, y in enumerate(pyramid, start=self.first))


class RetinaNetFromOne(RetinaNet):
    """RetinaNet of torchvision, with labels from 1 like its R-CNNs', though it has no class for the background."""

    def compute_loss(self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]) -> dict[str, Tensor]:
        return super().compute_loss([target | {"labels": target["labels"] - 1} for target in targets], head_outputs, anchors)

    def postprocess_detections(self, *args: Any) -> list[dict[str, Tensor]]:
        return [detections | {"labels": detections["labels"] + 1} for detections in super().postprocess_detections(*args)]


def _one_of(what: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join(names)}")


def _check_labels(num_classes: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """torchvision would fail with an index out of range, on a GPU in a later operation."""
    targets = args[1] if len(args) > 1 else kwargs.get("targets")
    for number, target in enumerate(targets or ()):
        labels = target["labels"]
        wrong = labels[(labels < 1) | (labels > num_classes)]
        if len(wrong):
            raise ValueError(f"targets[{number}] has labels {wrong.unique().tolist()}; {num_classes} classes are 1 to {num_classes}")
