"""Every kernel compiles ahead of time for every target, without spills and with loads as wide as the data allows."""

from __future__ import annotations

import re
from importlib import import_module

import pytest
import triton
from aot import TARGETS, compile_kernel, resources

gather, fusion, offset_fc = (import_module(f"atm_triton.{name}") for name in ("axial_gather", "branch_fusion", "offset_fc"))

STAGES = {
    "stage 1": (64, 2),
    "stage 2": (128, 4),
    "stage 3": (320, 4),
    "stage 4": (512, 8),
    "L stage 4": (768, 8),
}  # channels, channels per offset
SIZES = {name: "i32" for name in ("N", "H", "W", "T", "TILES")}
FLOAT32 = {f"{name}_ptr": "*fp32" for name in ("mean", "rstd", "product", "dbias", "partial")}
# The ptxas of Triton 3.6 keeps one 64-bit value of this kernel on the stack; later ones do not.
SPILLS = {("3.6", 100, "stage 3", "offset fwd"): 8}
MATRIX_UNITS = {80: "HMMA", 90: "HGMMA", 100: "UTC.*MMA|HMMA", 120: "HMMA", "gfx942": "v_mfma"}


def arguments(kernel, dtype: str, scatter: bool = False) -> dict[str, str]:
    types = {name: f"*{dtype}" for name in kernel.arg_names if name.endswith("_ptr")}
    types |= {name: FLOAT32[name] for name in types if name in FLOAT32}
    return types | SIZES | ({"dx_ptr": "*fp32"} if scatter else {})


def launches(C: int, S: int, dtype: str = "bf16"):
    """Every kernel as its operator launches it for C channels: name, kernel, constexprs, whether it scatters."""
    G, O = C // S, 2 * C // S  # noqa: E741
    common = dict(G=G, S=S, OFFSET_STRIDE=2 * G)
    tile = gather._formula(G, S, 2048)
    for along_w in (True, False):
        yield "gather fwd", gather._axial_gather_fwd_kernel, dict(common, ALONG_W=along_w, **tile), False
    yield "gather bwd", gather._axial_gather_bwd_kernel, dict(common, ALONG_W=True, SCATTER=False, **tile), False
    yield "gather bwd", gather._axial_gather_bwd_kernel, dict(common, ALONG_W=False, SCATTER=True, **tile), True
    line = {{"BLOCK_N": "BLOCK_Q"}.get(k, k): v for k, v in tile.items()}
    yield "gather dx", gather._axial_gather_dx_kernel, dict(common, ALONG_W=True, **line), False
    yield "fusion fwd", fusion._branch_fusion_fwd_kernel, dict(C=C, **fusion._formula(C, 2048)), False
    yield "fusion bwd", fusion._branch_fusion_bwd_kernel, dict(C=C, **fusion._formula(C, 4096)), False
    tiles = offset_fc.configs(C, O, dtype == "fp32")
    yield "offset fwd", offset_fc._offset_fc_fwd_kernel, dict(C=C, O=O, EPS=1e-5, **tiles["offset_fc_fwd"]), False
    yield "offset dx", offset_fc._offset_fc_dx_kernel, dict(C=C, O=O, **tiles["offset_fc_dx"]), False
    yield "offset dw", offset_fc._offset_fc_dw_kernel, dict(C=C, O=O, CHUNK=offset_fc.CHUNK, **tiles["offset_fc_dw"]), False


def compiled(kernel, constexprs: dict, target, dtype: str, scatter: bool = False):
    constexprs = dict(constexprs)
    num_warps = constexprs.pop("num_warps")
    return compile_kernel(kernel, arguments(kernel, dtype, scatter), constexprs, target, num_warps)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("target", TARGETS)
def test_machine_code(target, stage):
    """No spills; loads as wide as the data allows; products on the matrix units; vector atomics."""
    if target != 90 and stage in ("stage 2", "stage 4"):
        pytest.skip("between stages 1, 3 and L's 4: compiled for sm_90 alone, to save time")
    C, S = STAGES[stage]
    # Neighbouring offset channels point to different tokens: a gathered load can span the channels of one offset, no more.
    gathered = {2: r"LDG\.E$", 4: r"LDG\.E\.64", 8: r"LDG\.E\.128"}[S]
    for name, kernel, constexprs, scatter in launches(C, S):
        use = resources(compiled(kernel, constexprs, target, "bf16", scatter))
        allowed = SPILLS.get((triton.__version__[:3], target, stage, name), 0)
        assert use.spills <= allowed, f"{name} spills: {use}"
        if name.startswith("offset"):
            assert use.count(MATRIX_UNITS[target]) > 0, f"{name} without matrix units: {use.instructions}"
        if target == "gfx942":
            continue
        if name in ("gather fwd", "gather bwd"):
            assert use.count(gathered) > 0 and use.count(r"LDG.*(U16|U8)") == 0, f"{name}: {use.instructions}"
        elif name != "gather dx":  # which reads one token at a time
            assert use.count(r"(LDG\.E|LDGSTS\.E\.BYPASS)\.128") > 0, f"{name}: {use.instructions}"
            assert use.count(r"STG.*128") > 0, f"{name}: {use.instructions}"
        if scatter and target == 90:
            assert use.count(rf"REDG.*F32x{min(S, 4)}") > 0 and use.count(r"REDG.*ADD\.F32\.") == 0, f"{name}: {use.instructions}"


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_no_spills_in_other_dtypes(dtype):
    for name, kernel, constexprs, scatter in launches(*STAGES["stage 3"], dtype):
        assert resources(compiled(kernel, constexprs, 90, dtype, scatter)).spills == 0, f"{name} spills in {dtype}"


TOKENS = {"x", "dy", "y", "offset", "doffset", "dx", "mean", "rstd", "w", "h", "c", "dw", "dh", "dc", "partial", "product"}


@pytest.mark.parametrize("stage", ["stage 1", "stage 3"])
def test_row_addresses_are_64_bit(stage):
    """Tokens times channels may pass 2^31: what is first added to the pointer of such a tensor must be computed in 64 bits."""
    for name, kernel, constexprs, scatter in launches(*STAGES[stage]):
        ttir = compiled(kernel, constexprs, 90, "bf16", scatter).asm["ttir"]
        pointers = {f"%{argument}": argument.removesuffix("_ptr") for argument in kernel.arg_names if argument.endswith("_ptr")}
        tokens = TOKENS & set(pointers.values()) - ({"dx"} if constexprs.get("SCATTER") is False else set())
        bits = set()
        for line in ttir.splitlines():
            if added := re.search(r"tt\.addptr (%\S+), .*[x ](i32|i64)\b", line):
                bits.add((pointers.get(added[1]), added[2]))
            if made := re.match(r"\s*(%\S+) = (?:tt\.splat (%\S+) )?", line):  # names come again in other loops
                pointers[made[1]] = pointers.get(made[2], "")
        assert {(token, "i64") for token in tokens} <= bits, f"{name}: {bits}"
        assert not {(token, "i32") for token in tokens} & bits, f"{name}: {bits}"
