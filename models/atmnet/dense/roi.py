"""Parts that the heads on regions of interest of Mask R-CNN and Cascade Mask R-CNN have in common."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

BOX_SIZE, MASK_SIZE = 7, 14  # of a region, in each head
BOX_FEATURES = 1024
LEVELS = {f"p{level}": 2**level for level in (2, 3, 4, 5)}  # the maps that regions are read from, and their strides

Head = TypeVar("Head", bound=nn.Module)


def in_float32(head: Head) -> Head:
    """The head, with results in float32 under autocast too: torchvision does its arithmetic on boxes in the dtype of what heads predict,
    and bfloat16 has no odd numbers beyond 256."""
    head.register_forward_hook(_to_float32)
    return head


def _to_float32(_: nn.Module, __: object, output: object) -> object:
    return tree_map(Tensor.float, output)


def roi_align(size: int) -> MultiScaleRoIAlign:
    align = MultiScaleRoIAlign(list(LEVELS), size, sampling_ratio=2)
    # Left out, it infers them from the first batch, wrongly if padding made its images half as large again.
    align.scales = [1 / stride for stride in LEVELS.values()]
    align.map_levels = initLevelMapper(k_min=2, k_max=5)
    return align


def box_predictor(num_classes: int) -> FastRCNNPredictor:
    return in_float32(FastRCNNPredictor(BOX_FEATURES, num_classes))


def mask_branch(dim: int, num_classes: int) -> dict[str, nn.Module]:
    """The arguments of torchvision's RoI heads that make masks."""
    return dict(
        mask_roi_pool=roi_align(MASK_SIZE),
        mask_head=MaskRCNNHeads(dim, [dim] * 4, dilation=1),
        mask_predictor=in_float32(MaskRCNNPredictor(dim, dim, num_classes)),
    )
