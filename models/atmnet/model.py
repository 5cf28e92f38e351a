"""ATMNet (paper, section 3.3): four stages of Active Token Mixer blocks, channels last throughout, under timm's model contract."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import ClassifierHead, DropPath, Mlp
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from atm_triton import ActiveTokenMixer, OffsetFC

from .ablations import ablate
from .weights.hub import HubModel

LAYER_NORM_EPS = 1e-5

torch.fx.wrap("rearrange")  # symbolic tracing records its calls, for it looks at shapes, which proxies do not have


class Downsample(nn.Conv2d):
    """Convolution 3x3 of stride 2, ``[B, H, W, dim_in] -> [B, ceil(H / 2), ceil(W / 2), dim]``."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__(dim_in, dim, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return downsample(x, self.weight, self.bias)


@torch.fx.wrap
def downsample(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = rearrange(x, "b h w c -> b c h w")
    if x.shape[0] > 1 or x.device.type != "cpu" or not torch.compiler.is_compiling():
        return to_channels_last(F.conv2d(x, weight, bias, stride=2, padding=1))
    # For one image on CPU, PyTorch chooses among convolutions by the size of the image, and a graph that holds that choice is compiled
    # again for every class of sizes. A GEMM holds for all.
    patches = rearrange(F.unfold(x, kernel_size=3, stride=2, padding=1), "b patch n -> b n patch")
    y = F.linear(patches, rearrange(weight, "o i h w -> o (i h w)"), bias)
    return rearrange(y, "b (h w) c -> b h w c", h=(x.shape[2] + 1) // 2)


class PEG(nn.Conv2d):
    """Position encoding generator: a depthwise 3x3 convolution, added to its input, tokens ``[B, N, C]`` of an image ``height`` tall."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int) -> Tensor:  # type: ignore[override]
        # Through a view of the weight its gradient gets the weight's own strides: those of the convolution's, which differ along the 1, DDP
        # would copy, and warn.
        weight = rearrange(rearrange(self.weight, "c 1 kh kw -> c (kh kw)"), "c (kh kw) -> c 1 kh kw", kh=3)
        y = self._conv_forward(rearrange(x, "b (h w) c -> b c h w", h=height), weight, self.bias)
        return x + rearrange(y, "b c h w -> b (h w) c")


class Block(nn.Module):
    """``x + mix(norm(x))``, then ``x + mlp(norm(x))``. Some blocks also own the layer that makes new offsets for the stage."""

    def __init__(self, dim: int, mlp_ratio: float, share: int, new_offset: bool, drop_path: float, proj_drop: float) -> None:
        super().__init__()
        self.offset = OffsetFC(dim, share, LAYER_NORM_EPS) if new_offset else None
        self.norm1 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mixer = ActiveTokenMixer(dim, share, own_offset=False, proj_drop=proj_drop)
        self.norm2 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, height: int, offset: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens ``[B, N, C]`` to tokens with the stage's offsets ``[B, H, W, 2G]``, and the offsets if the block makes new ones.

        All parameters are used in here, as FSDP gathers a block's, and checkpointing frees its activations, around this call alone.
        """
        new = None
        if self.offset is not None:
            offset = new = self.offset(rearrange(x, "b (h w) c -> b h w c", h=height))
        y = self.mixer(rearrange(self.norm1(x), "b (h w) c -> b h w c", h=height), offset)
        x = x + self.drop_path(rearrange(y, "b h w c -> b (h w) c"))
        return x + self.drop_path(self.mlp(self.norm2(x))), new


class Stage(nn.Module):
    """Blocks of one resolution, after a downsampling if ``dim_in`` is given. Every ``period`` blocks new offsets are made,
    with position from the PEG.

    Between the blocks tokens are ``[B, N, C]``: Inductor takes four dimensions before a convolution for NCHW, and would store the channels
    of a token far apart.
    """

    def __init__(
        self,
        dim_in: int | None,
        dim: int,
        mlp_ratio: float,
        share: int,
        period: int,
        drop_path: Sequence[float],
        proj_drop: float,
        peg: bool = True,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = Downsample(dim_in, dim) if dim_in else None
        self.peg = PEG(dim) if peg else None
        last = len(drop_path) - 1  # it would make offsets that it alone uses, and takes the stage's latest instead
        makers = [j for j in range(len(drop_path)) if j == 0 or (j % period == 0 and j != last)]
        self.blocks: Any = nn.ModuleList(Block(dim, mlp_ratio, share, j in makers, rate, proj_drop) for j, rate in enumerate(drop_path))

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        height = x.shape[1]
        x = rearrange(x, "b h w c -> b (h w) c")
        offset = None
        for block in self.blocks:
            if block.offset is not None:
                x, offset = x if self.peg is None else self.peg(x, height), None
            x, new = checkpoint(block, x, height, offset) if self.grad_checkpointing else block(x, height, offset)
            offset = offset if new is None else new
        return rearrange(x, "b (h w) c -> b h w c", h=height)


def to_channels_last(x: Tensor) -> Tensor:
    return rearrange(x, "b c h w -> b h w c").contiguous()


class ATMNet(HubModel, nn.Module):
    """ATMNet. Every argument but ``share``, ``period``, ``peg`` and ``offsets`` is timm's.

    Args:
        in_chans: Image channels.
        num_classes: Classes of the head; 0 for none.
        global_pool: Pooling of the head: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for none.
        depths, dims, mlp_ratios: Blocks, channels and MLP expansion of each stage.
        share: Channels that share one offset, per stage.
        period: New offsets are made every so many blocks.
        peg: Whether offsets are made of tokens that know their position.
        offsets: ``"axial"``, the paper's, or one of its ablations: ``"zero"``, ``"planar"``, ``"three"`` (see ``atmnet.ablations``).
        drop_rate, proj_drop_rate: Dropout before the classifier, and after projections.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0 in the first.
        device, dtype: Of the parameters.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (2, 2, 4, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        share: Sequence[int] = (2, 4, 4, 8),
        period: int = 2,
        peg: bool = True,
        offsets: str = "axial",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        lengths = dict(depths=len(depths), dims=len(dims), mlp_ratios=len(mlp_ratios), share=len(share))
        if len(set(lengths.values())) > 1 or not depths:
            told = ", ".join(f"{name} of {length}" for name, length in lengths.items())
            raise ValueError(f"depths, dims, mlp_ratios and share must have one value for each stage, got {told}")
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, dims[-1]
        self.stem = nn.Conv2d(in_chans, dims[0], kernel_size=7, stride=4, padding=2)
        drop_paths = [rates.tolist() for rates in torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))]
        self.stages: Any = nn.Sequential(
            *(
                Stage(dims[i - 1] if i else None, dims[i], mlp_ratios[i], share[i], period, drop_paths[i], proj_drop_rate, peg)
                for i in range(len(depths))
            )
        )
        if offsets != "axial":
            ablate(self.stages, offsets, proj_drop_rate)
        self.feature_info = [dict(num_chs=dim, reduction=4 * 2**i, module=f"stages.{i}") for i, dim in enumerate(dims)]
        self.norm: nn.Module = nn.LayerNorm(self.num_features, LAYER_NORM_EPS)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt="NHWC")
        self.apply(init_weights)
        self.to(device=device, dtype=dtype)

    @property
    def head_hidden_size(self) -> int:
        """Width of the pooled features."""
        return self.num_features * self.head.global_pool.feat_mult()

    def no_weight_decay(self) -> set[str]:
        return {f"stages.{i}.peg.weight" for i, stage in enumerate(self.stages) if stage.peg is not None}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(
            stem=r"^stem",
            blocks=r"^stages\.(\d+)"
            if coarse
            else [(r"^stages\.(\d+)\.(?:downsample|peg)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))],
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head.apply(init_weights)
        self.head.to(self.stem.weight).train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The stages' outputs, and the final features.

        Args:
            x: Images ``[B, in_chans, H, W]``.
            indices: The last n stages if an int, all if None, else these.
            norm: Apply the final norm to the last stage's output.
            stop_early: Stop after the last stage asked for.
            output_fmt: ``"NCHW"`` or ``"NHWC"``.
            intermediates_only: Return the stages' outputs alone.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = to_channels_last(self.stem(x))
        stages = self.stages[: last + 1] if stop_early else self.stages
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take:
                y = self.norm(x) if norm and i == len(self.stages) - 1 else x
                intermediates.append(rearrange(y, "b h w c -> b c h w") if output_fmt == "NCHW" else y)
        if intermediates_only:
            return intermediates
        return self.norm(x) if len(stages) == len(self.stages) else x, intermediates

    def prune_intermediate_layers(self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Drop what the stages ``indices`` do not need."""
        take, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        self.num_features = self.head.in_features = self.feature_info[last]["num_chs"]
        if prune_norm or shortened:
            self.norm = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.stages(to_channels_last(self.stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def init_weights(module: nn.Module) -> None:
    """Linear weights are truncated normal, convolutions normal by fan-out, biases zero; the mixer initialises its own likewise."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
