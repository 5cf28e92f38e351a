"""ATMNet (paper, section 3.3): four stages of Active Token Mixer blocks, channels last throughout, under timm's model contract. And of
videos, which the paper leaves to future work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .ablations import ablate
from .stages import LAYER_NORM_EPS, ClipStage, FrameStage, Stage, to_channels_last
from .weights.hub import HubModel

torch.fx.wrap("rearrange")  # symbolic tracing records its calls, for it looks at shapes, which proxies do not have

# Of videos, how many of the last stages mix along time; None: all of them.
TIME = {"all": None, "last": 2, "none": 0}


class ATMNet(HubModel, nn.Module):
    """ATMNet. Every argument but ``share``, ``period``, ``peg``, ``offsets``, ``time``, ``frames`` and ``tubelet`` is timm's.

    Args:
        in_chans: Image channels.
        num_classes: Classes of the head; 0 for none.
        global_pool: Pooling of the head: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for none.
        depths, dims, mlp_ratios: Blocks, channels and MLP expansion of each stage.
        share: Channels that share one offset, per stage.
        period: New offsets are made every so many blocks.
        peg: Whether offsets are made of tokens that know their position.
        offsets: ``"axial"``, the paper's, or one of its ablations: ``"zero"``, ``"planar"``, ``"three"`` (see ``atmnet.ablations``).
        time: Of videos ``[B, in_chans, T, H, W]``, which stages mix along time: ``"all"``; the ``"last"`` two, before which a frame is an
            image; or ``"none"``, so that frames meet in the head's pooling alone. None for images.
        frames: Of the clips that a model of videos is meant for. It takes any number.
        tubelet: Successive frames that the stem makes one of: 1 or more; of a clip that they do not divide, the last is repeated.
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
        time: str | None = None,
        frames: int = 16,
        tubelet: int = 1,
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
        if time not in (None, *TIME):
            raise ValueError(f"time must be one of {', '.join(map(repr, TIME))}, or None for images, got {time!r}")
        if min(frames, tubelet) < 1:
            raise ValueError(f"frames and tubelet must be 1 or more, got {frames} and {tubelet}")
        if (time is None and tubelet > 1) or (time is not None and offsets != "axial"):
            raise ValueError(f"a model of images has no tubelets, one of videos axial offsets: {time=}, {tubelet=}, {offsets=}")
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, dims[-1]
        self.time, self.frames, self.tubelet = time, frames, tubelet
        self.stem = nn.Conv2d(in_chans * tubelet, dims[0], kernel_size=7, stride=4, padding=2)
        drop_paths = [rates.tolist() for rates in torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))]
        self.stages: Any = nn.Sequential(
            *(
                stage(dims[i - 1] if i else None, dims[i], mlp_ratios[i], share[i], period, drop_paths[i], proj_drop_rate, peg)
                for i, stage in enumerate(_stage_classes(time, len(depths)))
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
            x: Images ``[B, in_chans, H, W]``, or clips.
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
        x = self.embed(x)
        stages = self.stages[: last + 1] if stop_early else self.stages
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take:
                y = self.norm(x) if norm and i == len(self.stages) - 1 else x
                intermediates.append(rearrange(y, "b ... c -> b c ...") if output_fmt == "NCHW" else y)
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

    def embed(self, x: Tensor) -> Tensor:
        """Images ``[B, in_chans, H, W]`` to tokens ``[B, H, W, C]``, clips ``[B, in_chans, T, H, W]`` to ``[B, T, H, W, C]``."""
        if self.time is None:
            return to_channels_last(self.stem(x))
        x = _clips(x, self.in_chans, self.tubelet)
        x = rearrange(x, "b c (t s) h w -> b t (s c) h w", s=self.tubelet)
        return to_channels_last(self.stem(x.flatten(0, 1))).unflatten(0, x.shape[:2])

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.stages(self.embed(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.time is not None:
            x = x.flatten(1, 3).unsqueeze(1)
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@torch.fx.wrap
def _clips(x: Tensor, channels: int, tubelet: int) -> Tensor:
    """Clips whose frames make whole tubelets."""
    if x.ndim != 5 or x.shape[1] != channels or not x.shape[2]:
        raise ValueError(f"a model of videos takes clips [B, {channels}, T, H, W] of a frame or more, got {list(x.shape)}")
    short = -x.shape[2] % tubelet
    return torch.cat([x, *[x[:, :, -1:]] * short], 2) if short else x


def _stage_classes(time: str | None, stages: int) -> list[type[Stage]]:
    if time is None:
        return [Stage] * stages
    along = TIME[time]
    return [ClipStage if along is None or i >= stages - along else FrameStage for i in range(stages)]


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
