"""Kernels as their operators launch them, for the channels of the network's stages: what is compiled ahead of time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from aot import compile_kernel

from atm_triton.ops import axial_gather, branch_fusion, offset_fc
from atm_triton.ops.token_mix import launch as token_mix

STAGES = {
    "stage 1": (64, 2, 56),
    "stage 2": (128, 4, 28),
    "stage 3": (320, 4, 14),
    "stage 4": (512, 8, 7),
    "L stage 4": (768, 8, 7),
}  # channels, channels per offset, tokens along an axis at 224 x 224
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SIZES = ("N", "B", "D", "H", "W", "T", "TILES")
FLOAT32 = ("mean", "rstd", "dscaled_weight", "dbias", "partial", "means", "pooled", "alpha", "dmean")


@dataclass(frozen=True)
class Variant:
    name: str
    kernel: Any
    dtype: str
    config: dict[str, int]  # a candidate
    constants: dict[str, Any]  # the other constexprs
    float32: tuple[str, ...] = ()  # further pointers to float32
    module: Any = field(default=None, repr=False)

    def arguments(self) -> dict[str, str]:
        types = {name: f"*{self.dtype}" for name in self.kernel.arg_names if name.endswith("_ptr")}
        types |= {f"{name}_ptr": "*fp32" for name in (*FLOAT32, *self.float32) if f"{name}_ptr" in types}
        return types | {name: "i32" for name in SIZES}

    def compile(self, target: int | str):
        constants = {name: value for name, value in (self.config | self.constants).items() if name in self.kernel.arg_names}
        options = {name: value for name, value in self.config.items() if name in ("num_warps", "num_stages")}
        return compile_kernel(self.kernel, self.arguments(), constants, target, options)


def variants(stage: str, dtype: str, target: int | str = 90, candidates: bool = False) -> list[Variant]:
    """Kernels as launched on ``target``: with the default configuration of each alone, or with every candidate's."""
    return list(_variants(stage, dtype, candidates))


def _variants(stage: str, dtype: str, candidates: bool) -> Iterator[Variant]:
    C, S, side = STAGES[stage]
    G, O = C // S, 2 * C // S  # noqa: E741
    x = torch.empty(128, side, side, C, device="meta", dtype=DTYPES[dtype])

    def each(
        module: Any, kernel: str, groups: int, *kinds: tuple[str, dict[str, Any]], float32: tuple[str, ...] = (), all: bool = candidates
    ) -> Iterator[Variant]:
        for config in module.candidates(kernel, x, groups):
            for kind, constants in kinds:
                kernel_function = getattr(module, f"_{kernel}_kernel")
                yield Variant(f"{kernel} {kind}".strip(), kernel_function, dtype, config, constants, float32, module)
            if not all:
                return

    line = dict(G=G, S=S, OFFSET_STRIDE=2 * G)
    both = [(axis, dict(line, ALONG_W=axis == "w")) for axis in "wh"]
    yield from each(axial_gather, "axial_gather_fwd", G, *both)
    yield from each(axial_gather, "axial_gather_bwd", G, ("", dict(line, ALONG_W=True, SCATTER=False)))
    yield from each(axial_gather, "axial_gather_bwd", G, ("scatter", dict(line, ALONG_W=False, SCATTER=True)), float32=("dx",))
    yield from each(axial_gather, "axial_gather_dx", G, ("", dict(line, ALONG_W=True)))
    three = dict(C=C, BRANCHES=3)
    yield from each(branch_fusion, "branch_fusion_fwd", C, ("", three))
    yield from each(branch_fusion, "branch_fusion_bwd", C, ("", three))
    yield from each(offset_fc, "offset_fc_fwd", O, ("", dict(C=C, O=O, EPS=1e-5)))
    yield from each(offset_fc, "offset_fc_dx", O, ("", dict(C=C, O=O)))
    yield from each(offset_fc, "offset_fc_dw", O, ("", dict(C=C, O=O, CHUNK=offset_fc.CHUNK)))

    # Images have one frame, which Triton compiles in.
    line |= dict(AXES=2, D=1)
    by_lines = [(axis, dict(line, AXIS=i, PLANE=i, PLANES=3)) for i, axis in enumerate("wh")]
    yield from each(token_mix, "token_mix_gather", G, ("", line))
    yield from each(token_mix, "token_mix_gather_lines", G, *by_lines)
    yield from each(token_mix, "token_mix_pooled", C, ("", dict(three, O=C)))
    yield from each(token_mix, "token_mix_alpha", C, ("", dict(three, F=C // 4)))
    yield from each(token_mix, "token_mix_fold", G, ("", dict(three, O=C)), float32=("bias",))
    yield from each(token_mix, "token_mix_fuse", C, ("", three))
    yield from each(token_mix, "token_mix_fuse_backward", C, ("", three))
    yield from each(token_mix, "token_mix_doffset", G, ("", dict(line, SCATTER=False)))
    yield from each(token_mix, "token_mix_doffset", G, ("scatter", dict(line, SCATTER=True)), float32=("dx",))
    yield from each(token_mix, "token_mix_dx", G, *by_lines)

    # Of three axes the default alone: the configurations are those of images.
    clip, four = dict(line, AXES=3, OFFSET_STRIDE=3 * G), dict(C=C, BRANCHES=4)
    del clip["D"]
    once = functools.partial(each, token_mix, all=False)
    yield from once("token_mix_gather", G, ("clip", clip))
    along = [(0, dict(clip, AXIS=0, PLANE=0, PLANES=3)), (2, dict(clip, AXIS=2, PLANE=0, PLANES=1))]
    yield from once("token_mix_gather_lines", G, *((f"{'wht'[axis]} clip", constants) for axis, constants in along))
    yield from once("token_mix_pooled", C, ("clip", dict(four, O=C)))
    yield from once("token_mix_alpha", C, ("clip", dict(four, F=C // 4)))
    yield from once("token_mix_fold", G, ("clip", dict(four, O=C)), float32=("bias",))
    yield from once("token_mix_fuse", C, ("clip", four))
    yield from once("token_mix_fuse_backward", C, ("clip", four))
    yield from once("token_mix_doffset", G, ("clip", dict(clip, SCATTER=False)))
    yield from once("token_mix_doffset", G, ("clip scatter", dict(clip, SCATTER=True)), float32=("dx",))
    yield from once("token_mix_dx", G, ("t clip", dict(clip, AXIS=2)))
