"""Backbones of timm as dense prediction takes them: four NCHW maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch.nn.functional as F
from einops import rearrange
from timm.models import is_model_in_modules, swin_transformer, swin_transformer_v2
from torch import Tensor, nn

from ..variants import VARIANTS, canonical_name, check_known

STRIDES = [4, 8, 16, 32]

# Arguments that say where weights come from.
OF_WEIGHTS = "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"

# Window attention at whatever size comes, its last stage shifted too, as dense prediction has it.
SWIN = dict(strict_img_size=False, always_partition=True)

# Modules of timm whose networks take any size by themselves: as published, these and ATMNet see images without padding.
ANY_SIZE = ["resnet", "convnext", "pvt_v2", "swin_transformer", "swin_transformer_v2"]


class Backbone(nn.Module):
    """The timm model ``name`` with ``features_only``: images ``[B, 3, H, W]`` to four maps, each about half as large as the one before.
    Images may have any size, if timm's network takes any (MaxViT, Hiera and CoaT do not). An ATMNet, ResNet, ConvNeXt, Swin or PVTv2 sees
    them as they are; for other networks they are zero-padded on the right and below to multiples of 32.

    BatchNorm stays as timm has it, trained and with running statistics; a detector of small batches freezes it from outside.

    Args:
        name: Such as ``"atmnet_t"``, ``"resnet50"``, ``"swin_tiny_patch4_window7_224"``.
        **kwargs: Passed on to ``timm.create_model``: ``drop_path_rate``, ``pretrained``, ...

    Attributes:
        net: The timm model.
        name, arguments: By which it is made again, whatever weights it started from.
        channels: Of the four maps.
        multiple: What the sides of images are padded to multiples of; 1 without padding.

    Raises:
        ValueError: timm knows no such model, or it has no maps at strides 4, 8, 16 and 32.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__()
        self.name, self.arguments = canonical_name(name), {key: value for key, value in kwargs.items() if key not in OF_WEIGHTS}
        self.net = _create(self.name, kwargs)
        self.channels: list[int] = self.net.feature_info.channels()
        self.channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        architecture = self.net.pretrained_cfg["architecture"]
        self.multiple = 1 if architecture in VARIANTS or is_model_in_modules(architecture, ANY_SIZE) else STRIDES[-1]

    def no_weight_decay(self) -> set[str]:
        """timm's Swins exempt these too, but not as networks of features."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def padded_size(self, images: Tensor) -> tuple[int, int]:
        """Height and width with which the network sees the images."""
        # Not by `-width % 32`: torch.compile cannot make a later resize's scale of a remainder.
        height, width = ((length + self.multiple - 1) // self.multiple * self.multiple for length in images.shape[-2:])
        return height, width

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.multiple > 1:
            height, width = self.padded_size(x)
            x = F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))
        maps = self.net(x)
        return [rearrange(y, "b h w c -> b c h w") for y in maps] if self.channels_last else list(maps)


def _create(name: str, kwargs: dict[str, Any]) -> Any:
    if ":" not in name:  # which names a place that timm looks the model up in
        check_known(name)
    if name.startswith("swinv2_cr"):
        raise ValueError(
            f"{name} mixes up the borders of maps that are not made of whole windows; take a swin_ or a swinv2_ of another kind"
        )
    if name.startswith("swin"):
        kwargs = SWIN | kwargs
    try:
        net: Any = timm.create_model(name, features_only=True, out_indices=4, **kwargs)  # the last four: ResNets have one at stride 2 too
    except AssertionError as error:
        raise ValueError(f"{name} does not have four feature maps, which dense prediction needs at strides {STRIDES}: {error}") from error
    except RuntimeError as error:  # of weights that timm does not have
        advice = "; the authors' weights are loaded by atmnet.load_official" if name in VARIANTS else ""
        raise ValueError(f"{name}: {error}{advice}") from error
    if net.feature_info.reduction() != STRIDES:
        raise ValueError(f"{name} has its last feature maps at strides {net.feature_info.reduction()}; dense prediction needs {STRIDES}")
    if name.startswith("swin"):
        net.patch_embed.dynamic_img_pad = True  # to whole patches, or the sides of images would have to be multiples of them
        net.patch_embed.register_forward_pre_hook(partial(_pad_image, net.patch_embed.patch_size))
    for module in net.modules():
        if isinstance(module, (swin_transformer.PatchMerging, swin_transformer_v2.PatchMerging)):
            module.register_forward_pre_hook(partial(_pad_map, (2, 2)))
        elif isinstance(module, (swin_transformer.SwinTransformerBlock, swin_transformer_v2.SwinTransformerV2Block)):
            module._attn = partial(_in_whole_windows, module._attn, module.window_size)  # type: ignore[method-assign]
    return net


# timm pads by remainders, for each of which torch.compile would make a graph. What comes padded has none.


def _missing(lengths: Sequence[int], multiples: Sequence[int]) -> list[int]:
    return [(length + multiple - 1) // multiple * multiple - length for length, multiple in zip(lengths, multiples, strict=True)]


def _pad_image(multiples: Sequence[int], _module: nn.Module | None, args: tuple[Tensor]) -> Tensor:
    rows, columns = _missing(args[0].shape[2:], multiples)
    return F.pad(args[0], (0, columns, 0, rows))


def _pad_map(multiples: Sequence[int], _module: nn.Module | None, args: tuple[Tensor]) -> Tensor:
    rows, columns = _missing(args[0].shape[1:3], multiples)
    return F.pad(args[0], (0, 0, 0, columns, 0, rows))


def _in_whole_windows(attention: Callable[[Tensor], Tensor], window: tuple[int, int], x: Tensor) -> Tensor:
    """timm pads to whole windows after the cyclic shift, but masks as if it had before, and a map's last rows attend to its first."""
    height, width = x.shape[1:3]
    y = attention(_pad_map(window, None, (x,)))
    return F.pad(y, (0, 0, 0, width - y.shape[2], 0, height - y.shape[1]))  # not a slice, whose strides are other where nothing was padded
