"""Semantic segmentation: Semantic FPN (Kirillov et al.) on a neck, UperNet (Xiao et al.) on the backbone itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from .backbone import Backbone
from .necks import NECKS

HEADS = "semantic-fpn", "upernet"
DROPOUT = 0.1  # of whole channels, before each classifier


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def classifier(channels: int, num_classes: int) -> nn.Module:
    conv = nn.Conv2d(channels, num_classes, kernel_size=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Dropout2d(DROPOUT), conv)


def init_convolution(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class SemanticFPNHead(nn.Module):
    """Four NCHW maps at strides 4, 8, 16, 32 to logits at stride 4: each map through convolutions and doublings up to stride 4, the sum
    through a classifier."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, dim: int = 128) -> None:
        super().__init__()
        self.branches = nn.ModuleList(self._branch(channels, dim, doublings) for doublings, channels in enumerate(in_channels))
        self.apply(init_convolution)
        self.classifier = classifier(dim, num_classes)

    @staticmethod
    def _branch(channels: int, dim: int, doublings: int) -> nn.Module:
        layers: list[nn.Module] = []
        for i in range(max(1, doublings)):
            layers.append(Conv2dNormActivation(dim if i else channels, dim, norm_layer=partial(nn.GroupNorm, 32)))
            if doublings:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*layers)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        finest, *others = (branch(x) for branch, x in zip(self.branches, maps, strict=True))
        return self.classifier(sum(others, finest))


def means(x: Tensor, grid: int) -> Tensor:
    """Adaptive average pooling of an NCHW map to ``grid x grid``, as GEMMs: PyTorch's own is compiled again for every size."""

    def parts(length: int) -> Tensor:
        part, position = torch.arange(grid, device=x.device)[:, None], torch.arange(length, device=x.device)
        begin, end = part * length // grid, ((part + 1) * length + grid - 1) // grid
        return ((begin <= position) & (position < end)).to(x.dtype) / (end - begin)

    return einsum(x, parts(x.shape[2]), parts(x.shape[3]), "b c h w, i h, j w -> b c i j")


class PyramidPooling(nn.Module):
    """A map beside its means over 1, 4, 9 and 36 parts of the image."""

    GRIDS = (1, 2, 3, 6)

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.branches: Any = nn.ModuleList(Conv2dNormActivation(channels, dim, kernel_size=1) for _ in self.GRIDS)
        self.merge = Conv2dNormActivation(channels + len(self.GRIDS) * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [branch(means(x, grid)) for branch, grid in zip(self.branches, self.GRIDS, strict=True)]
        return self.merge(torch.cat([x, *(resize(y, x.shape[-2:]) for y in pooled)], 1))


class UperNetHead(nn.Module):
    """Four NCHW maps at strides 4, 8, 16, 32 to logits at stride 4: a feature pyramid under pyramid pooling, its maps put together."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, dim: int = 512) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.laterals: Any = nn.ModuleList(Conv2dNormActivation(channels, dim, kernel_size=1) for channels in finer)
        self.pooling = PyramidPooling(coarsest, dim)
        self.outputs: Any = nn.ModuleList(Conv2dNormActivation(dim, dim) for _ in finer)
        self.merge = Conv2dNormActivation(len(in_channels) * dim, dim)
        self.apply(init_convolution)
        self.classifier = classifier(dim, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = maps
        pyramid = [*(lateral(x) for lateral, x in zip(self.laterals, finer, strict=True)), self.pooling(coarsest)]
        for i in reversed(range(len(finer))):
            pyramid[i] = pyramid[i] + resize(pyramid[i + 1], pyramid[i].shape[-2:])
        pyramid = [*(output(x) for output, x in zip(self.outputs, pyramid, strict=False)), pyramid[-1]]
        return self.classifier(self.merge(torch.cat([resize(x, pyramid[0].shape[-2:]) for x in pyramid], 1)))


class FCNHead(nn.Module):
    """One map to logits of its size."""

    def __init__(self, channels: int, num_classes: int, dim: int = 256) -> None:
        super().__init__()
        self.conv = Conv2dNormActivation(channels, dim)
        self.apply(init_convolution)
        self.classifier = classifier(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.conv(x))


class Segmenter(nn.Module):
    """Images ``[B, 3, H, W]`` of any size to logits ``[B, num_classes, H, W]``; in training to a pair, those of ``auxiliary`` second (or
    None), which looks at the backbone's map at stride 16."""

    def __init__(self, backbone: Backbone, neck: nn.Module | None, head: nn.Module, auxiliary: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone, self.neck, self.head, self.auxiliary = backbone, neck, head, auxiliary

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        maps = self.backbone(images)
        logits = self._enlarge(self.head(maps if self.neck is None else self.neck(maps)), images, maps[0])
        if not self.training:
            return logits
        return logits, None if self.auxiliary is None else self._enlarge(self.auxiliary(maps[2]), images, maps[0])

    @staticmethod
    def _enlarge(logits: Tensor, images: Tensor, finest: Tensor) -> Tensor:
        """Enlarge logits to the padded images' size, without the padding; in float32, as bfloat16 makes close classes equal."""
        height, width = (4 * length for length in finest.shape[-2:])
        logits = resize(logits.float(), (height, width))
        # Not a slice, for which it matters to the compiler whether there is padding.
        return F.pad(logits, (0, images.shape[3] - width, 0, images.shape[2] - height))


def create_segmenter(
    backbone: str = "atmnet_t", head: str = "semantic-fpn", neck: str | None = None, num_classes: int = 150, **kwargs: Any
) -> Segmenter:
    """A segmentation network.

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
        return Segmenter(net, None, UperNetHead(net.channels, num_classes), FCNHead(net.channels[2], num_classes))
    if neck is not None and neck not in NECKS:
        raise ValueError(f"neck must be one of {', '.join(NECKS)}, got {neck!r}")
    net = Backbone(backbone, **kwargs)
    pyramid = NECKS[neck or "fpn"](net.channels)
    return Segmenter(net, pyramid, SemanticFPNHead([pyramid.dim] * len(net.channels), num_classes))
