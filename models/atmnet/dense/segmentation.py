"""Semantic segmentation: Semantic FPN (Kirillov et al.) on a neck, UperNet (Xiao et al.) on the backbone itself."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import Backbone
from .heads import FCNHead, FPNHead, UPerHead, resize
from .necks import NECKS

HEADS = "semantic-fpn", "upernet"


class Segmenter(nn.Module):
    """Images ``[B, 3, H, W]`` of any size to logits ``[B, num_classes, H, W]``; in training to a pair, those of ``auxiliary_head`` second
    (or None), which looks at the backbone's map at stride 16. Its parts are called as in mmsegmentation."""

    def __init__(self, backbone: Backbone, neck: nn.Module | None, decode_head: nn.Module, auxiliary_head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone, self.neck, self.decode_head, self.auxiliary_head = backbone, neck, decode_head, auxiliary_head

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        maps = self.backbone(images)
        logits = self._enlarge(self.decode_head(maps if self.neck is None else self.neck(maps)), images)
        if not self.training:
            return logits
        return logits, None if self.auxiliary_head is None else self._enlarge(self.auxiliary_head(maps[2]), images)

    def _enlarge(self, logits: Tensor, images: Tensor) -> Tensor:
        """Enlarge logits to the size of the images; in float32, as bfloat16 makes close classes equal."""
        height, width = self.backbone.padded_size(images)
        logits = resize(logits.float(), (height, width))
        if self.backbone.multiple == 1:
            return logits
        # Not a slice, for which it matters to the compiler whether there is padding.
        return F.pad(logits, (0, images.shape[3] - width, 0, images.shape[2] - height))


def create_segmenter(
    backbone: str = "atmnet_t", head: str = "semantic-fpn", neck: str | None = None, num_classes: int = 150, **kwargs: Any
) -> Segmenter:
    """A segmentation network. Its heads normalise over the batch: training needs more than one value of each channel, so two images, or for
    Semantic FPN one whose coarsest map is larger than 1 x 1.

    Args:
        backbone: Any timm model with maps at strides 4, 8, 16 and 32.
        head: ``"semantic-fpn"``, or ``"upernet"`` with an auxiliary head on the map at stride 16.
        neck: Of Semantic FPN: ``"fpn"`` (also if None) or ``"atmfpn"``. UperNet has its own pyramid and takes none.
        **kwargs: Passed on to ``timm.create_model``: ``drop_path_rate``, ``pretrained``, ...
    """
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
    if head == "upernet":
        if neck is not None:
            raise ValueError(f"upernet has a feature pyramid of its own and takes no neck, got neck={neck!r}")
        net = Backbone(backbone, **kwargs)
        return Segmenter(net, None, UPerHead(net.channels, num_classes), FCNHead(net.channels[2], num_classes))
    if neck is not None and neck not in NECKS:
        raise ValueError(f"neck must be one of {', '.join(NECKS)}, got {neck!r}")
    net = Backbone(backbone, **kwargs)
    pyramid = NECKS[neck or "fpn"](net.channels)
    return Segmenter(net, pyramid, FPNHead([pyramid.dim] * len(net.channels), num_classes))
