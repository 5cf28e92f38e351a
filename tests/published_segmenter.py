"""A stand-in for the authors' segmentation checkpoints and networks, from the names and definitions in their repository and in
mmsegmentation 0.11: weights by name, and in float64 what UPerHead, FCNHead, FPN and FPNHead make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from published_mixer import ATMLayer
from torch import Tensor

Weights = dict[str, Tensor]
GRIDS = (1, 2, 3, 6)


@dataclass
class Published:
    """ActiveLarge with its heads, at any width."""

    dims: Sequence[int] = (96, 192, 384, 768)
    dim: int = 512
    auxiliary_dim: int = 256
    neck_dim: int = 256
    fpn_dim: int = 128
    num_classes: int = 150
    depths: Sequence[int] = (3, 4, 24, 3)
    share: Sequence[int] = (2, 4, 4, 8)
    period: int = 6
    mlp_ratio: int = 4

    def new_offset(self, stage: int, block: int) -> bool:
        return block % self.period == 0 and block != self.depths[stage] - 1

    def shapes(self, head: str) -> dict[str, tuple[int, ...]]:
        """Shapes of every entry of the state dict."""
        shapes: dict[str, tuple[int, ...]] = {}

        def layer(name: str, *weight: int, bias: bool = True) -> None:
            shapes[f"{name}.weight"] = weight
            if bias:
                shapes[f"{name}.bias"] = weight[:1]

        def module(name: str, channels: int, dim: int, kernel: int) -> None:
            layer(f"{name}.conv", dim, channels, kernel, kernel, bias=False)
            layer(f"{name}.bn", dim)
            shapes.update({f"{name}.bn.running_mean": (dim,), f"{name}.bn.running_var": (dim,), f"{name}.bn.num_batches_tracked": ()})

        layer("backbone.patch_embed.proj", self.dims[0], 3, 7, 7)
        for i, (depth, dim) in enumerate(zip(self.depths, self.dims, strict=True)):
            for j in range(depth):
                block = f"backbone.blocks.{i}.{j}"
                layer(f"{block}.norm1", dim)
                layer(f"{block}.atm.atm_c", dim, dim, bias=False)
                layer(f"{block}.atm.atm_h", dim, dim, 1, 1)
                layer(f"{block}.atm.atm_w", dim, dim, 1, 1)
                layer(f"{block}.atm.fusion.fc1", dim // 4, dim)
                layer(f"{block}.atm.fusion.fc2", 3 * dim, dim // 4)
                layer(f"{block}.atm.proj", dim, dim)
                layer(f"{block}.norm2", dim)
                layer(f"{block}.mlp.fc1", self.mlp_ratio * dim, dim)
                layer(f"{block}.mlp.fc2", dim, self.mlp_ratio * dim)
                if self.new_offset(i, j):
                    layer(f"{block}.offset_layer.0", dim)
                    layer(f"{block}.offset_layer.1", 2 * dim // self.share[i], dim)
            if i < 3:
                layer(f"{block}.downsample.proj", self.dims[i + 1], dim, 3, 3)
            layer(f"backbone.pos_blocks.{i}.proj", dim, 1, 3, 3)
            layer(f"backbone.norm_{i}", dim)

        *finer, coarsest = self.dims
        if head == "upernet":
            layer("decode_head.conv_seg", self.num_classes, self.dim, 1, 1)
            for i in range(len(GRIDS)):
                module(f"decode_head.psp_modules.{i}.1", coarsest, self.dim, 1)
            module("decode_head.bottleneck", coarsest + len(GRIDS) * self.dim, self.dim, 3)
            for i, channels in enumerate(finer):
                module(f"decode_head.lateral_convs.{i}", channels, self.dim, 1)
                module(f"decode_head.fpn_convs.{i}", self.dim, self.dim, 3)
            module("decode_head.fpn_bottleneck", 4 * self.dim, self.dim, 3)
            layer("auxiliary_head.conv_seg", self.num_classes, self.auxiliary_dim, 1, 1)
            module("auxiliary_head.convs.0", self.dims[2], self.auxiliary_dim, 3)
            return shapes
        for i, channels in enumerate(self.dims):
            layer(f"neck.lateral_convs.{i}.conv", self.neck_dim, channels, 1, 1)
            layer(f"neck.fpn_convs.{i}.conv", self.neck_dim, self.neck_dim, 3, 3)
            for j in range(max(1, i)):
                module(f"decode_head.scale_heads.{i}.{2 * j}", self.fpn_dim if j else self.neck_dim, self.fpn_dim, 3)
        layer("decode_head.conv_seg", self.num_classes, self.fpn_dim, 1, 1)
        return shapes

    def weights(self, head: str) -> Weights:
        """Weights drawn at random, so that every one of them matters."""
        generator = torch.Generator().manual_seed(0)

        def draw(name: str, shape: tuple[int, ...]) -> Tensor:
            x = torch.randn(shape, generator=generator)
            if name.endswith("num_batches_tracked"):
                return torch.tensor(160_000)
            if name.endswith("running_var"):
                return 0.5 + x.abs()
            if len(shape) == 1:
                return 0.1 * x + (name.endswith("weight") and 1)
            return (3 if "offset_layer" in name else 1) * x / (x[0].numel() ** 0.5)

        return {name: draw(name, shape) for name, shape in self.shapes(head).items()}

    def maps(self, weights: Weights, images: Tensor) -> list[Tensor]:
        """The backbone's, of float64 weights."""
        w = {name.removeprefix("backbone."): value for name, value in weights.items() if name.startswith("backbone.")}

        def linear(name: str, x: Tensor) -> Tensor:
            return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

        def norm(name: str, x: Tensor) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

        def conv(name: str, x: Tensor, **options: int) -> Tensor:
            return F.conv2d(x.permute(0, 3, 1, 2), w[f"{name}.weight"], w[f"{name}.bias"], **options).permute(0, 2, 3, 1)

        x, maps = conv("patch_embed.proj", images.permute(0, 2, 3, 1), stride=4, padding=2), []
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                block = f"blocks.{i}.{j}"
                if self.new_offset(i, j):
                    x = x + conv(f"pos_blocks.{i}.proj", x, padding=1, groups=x.shape[-1])
                    offset = linear(f"{block}.offset_layer.1", norm(f"{block}.offset_layer.0", x))
                    offset = offset.repeat_interleave(self.share[i], dim=-1).permute(0, 3, 1, 2)
                mixer = ATMLayer(x.shape[-1]).double()
                mixer.load_state_dict({n.removeprefix(f"{block}.atm."): v for n, v in w.items() if n.startswith(f"{block}.atm.")})
                x = x + mixer(norm(f"{block}.norm1", x), offset)
                x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
            maps.append(norm(f"norm_{i}", x).permute(0, 3, 1, 2))
            if i < 3:
                x = conv(f"{block}.downsample.proj", x, stride=2, padding=1)
        return maps


def resize(x: Tensor, like: Tensor | Sequence[int]) -> Tensor:
    size = like.shape[2:] if isinstance(like, Tensor) else like
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def conv_module(w: Weights, name: str, x: Tensor) -> Tensor:
    kernel, norm = w[f"{name}.conv.weight"], [w[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(F.conv2d(x, kernel, padding=kernel.shape[-1] // 2), *norm).relu()


def classify(w: Weights, head: str, x: Tensor) -> Tensor:
    return F.conv2d(x, w[f"{head}.conv_seg.weight"], w[f"{head}.conv_seg.bias"])


def uper_head(w: Weights, maps: Sequence[Tensor]) -> Tensor:
    coarsest = maps[3]
    pooled = [conv_module(w, f"decode_head.psp_modules.{i}.1", F.adaptive_avg_pool2d(coarsest, grid)) for i, grid in enumerate(GRIDS)]
    laterals = [conv_module(w, f"decode_head.lateral_convs.{i}", maps[i]) for i in range(3)]
    laterals.append(conv_module(w, "decode_head.bottleneck", torch.cat([coarsest, *(resize(y, coarsest) for y in pooled)], 1)))
    for i in (2, 1, 0):
        laterals[i] = laterals[i] + resize(laterals[i + 1], laterals[i])
    outputs = [*(conv_module(w, f"decode_head.fpn_convs.{i}", laterals[i]) for i in range(3)), laterals[3]]
    return classify(w, "decode_head", conv_module(w, "decode_head.fpn_bottleneck", torch.cat([resize(y, outputs[0]) for y in outputs], 1)))


def fcn_head(w: Weights, maps: Sequence[Tensor]) -> Tensor:
    return classify(w, "auxiliary_head", conv_module(w, "auxiliary_head.convs.0", maps[2]))


def fpn_head(w: Weights, maps: Sequence[Tensor]) -> Tensor:
    """Logits of the FPN head, with the FPN before it."""

    def conv(name: str, x: Tensor) -> Tensor:
        kernel = w[f"neck.{name}.conv.weight"]
        return F.conv2d(x, kernel, w[f"neck.{name}.conv.bias"], padding=kernel.shape[-1] // 2)

    laterals = [conv(f"lateral_convs.{i}", x) for i, x in enumerate(maps)]
    for i in (2, 1, 0):
        laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], size=laterals[i].shape[2:], mode="nearest")
    total: Tensor | None = None
    for i, x in enumerate(laterals):
        x = conv(f"fpn_convs.{i}", x)
        for j in range(max(1, i)):
            x = conv_module(w, f"decode_head.scale_heads.{i}.{2 * j}", x)
            x = resize(x, [2 * length for length in x.shape[2:]]) if i else x
        total = x if total is None else total + resize(x, total)
    assert total is not None
    return classify(w, "decode_head", total)
