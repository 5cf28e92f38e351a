"""MACs of a model, counted as the paper counts them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet

from atm_triton.profile import count_macs

from ..dense.cascade import CascadeRoIHeads
from ..dense.roi import BOX_SIZE, MASK_SIZE
from ..tasks import input_shape

LAYER_NORM_MACS = 5  # per element, as fvcore and the paper have it


def macs(model: nn.Module, size: tuple[int, int] = (224, 224)) -> int:
    """MACs of one image ``(H, W)`` through any network of images, or of one clip through a network of videos: those of convolutions, GEMMs
    and attention, five per element of a LayerNorm, none for gathering, fusing and activations. Nothing is computed, and the model stays as
    it is.
    """
    image = torch.empty(1, *input_shape(model, size), device="meta", dtype=next(model.parameters()).dtype)
    return count_macs(model, image, LAYER_NORM_MACS)


def detector_macs(detector: RetinaNet | MaskRCNN, size: tuple[int, int] = (800, 1280)) -> int:
    """MACs of one image ``(H, W)`` through a detector, counted as in tables 4 to 7 of the paper: boxes of 1000 proposals in every
    stage, masks of 100 detections."""
    return macs(_Counted(detector), size)


class _Counted(nn.Module):
    """The layers of a detector without what lies between them, which depends on what is found."""

    def __init__(self, detector: RetinaNet | MaskRCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> None:
        maps = list(self.detector.backbone(image).values())
        if isinstance(self.detector, RetinaNet):
            self.detector.head(maps)
            return
        self.detector.rpn.head(maps)
        heads = self.detector.roi_heads
        channels = self.detector.backbone.out_channels
        for stage in heads.stages if isinstance(heads, CascadeRoIHeads) else [heads]:
            stage.box_predictor(stage.box_head(torch.empty(1000, channels, BOX_SIZE, BOX_SIZE, device=image.device)))
            stage.mask_predictor(stage.mask_head(torch.empty(100, channels, MASK_SIZE, MASK_SIZE, device=image.device)))
