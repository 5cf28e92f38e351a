"""Compilation of every kernel ahead of time for every target, without spills and with loads as wide as the data allows."""

from __future__ import annotations

import re
from typing import Any

import machine_code
import pytest
import triton
from aot import Resources, all_resources, registers_and_spills
from variants import STAGES, Variant, variants

MATRIX_UNITS = {80: "HMMA", 90: "HGMMA", 100: "UTC.*MMA|HMMA", 120: "HMMA", "gfx942": "v_mfma"}
WIDE = r"(LDG\.E|LDGSTS\.E\.BYPASS)\.128"
GATHERING = ("axial_gather_fwd", "axial_gather_bwd", "token_mix_gather", "token_mix_doffset")
BY_LINES = ("axial_gather_dx", "token_mix_dx")
POINTWISE = ("branch_fusion", "token_mix_fuse")


# Bytes that compilers older than the one whose code was looked at keep on the stack in a few kernels.
OLDER = 24 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9) else 0


def spills(size: int, registers: int, few: int = 16) -> bool:
    """Tell of spills, but for a few values that ptxas keeps despite free registers: more would cost a multiprocessor a program."""
    return size > max(OLDER, few if registers < 255 else 0)


Kernel = tuple[Variant, Any, Resources]
# With two channels to an offset and with eight: what the other stages and targets become is rarely wrong alone.
QUICK = [("stage 1", 90), ("L stage 4", 90)]
# All stages for sm_90, one for each other target; `make machine-code` compiles all for all.
OTHERS = [("stage 2", 90), ("stage 3", 90), ("stage 4", 90), ("L stage 4", 80), ("stage 1", 100), ("stage 3", 120), ("stage 1", "gfx942")]
COMPILED = QUICK + [pytest.param(other, marks=pytest.mark.exhaustive) for other in OTHERS]


@pytest.fixture(scope="module", params=COMPILED, ids=lambda of: f"{of[0]}-{of[1]}")
def kernels(request) -> tuple[str, int | str, list[Kernel]]:
    """The kernels of one stage and target, compiled once for all tests of them."""
    stage, target = request.param
    found = variants(stage, "bf16", target)
    compiled = [variant.compile(target) for variant in found]
    return stage, target, list(zip(found, compiled, all_resources(compiled), strict=True))


def test_machine_code(kernels):
    """Machine code has no spills; loads as wide as the data allows; products on the matrix units; vector atomics."""
    stage, target, found = kernels
    S = STAGES[stage][1]
    # Neighbouring offset channels point to different tokens: a gathered load can span the channels of one offset, no more.
    gathered = {2: r"LDG(STS)?\.E$", 4: r"LDG(STS)?\.E\.64", 8: r"LDG(STS)?\.E(\.BYPASS)?\.128"}[S]
    recorded = machine_code.read()
    for variant, _, use in found:
        name = variant.name
        assert not spills(use.spills, use.registers), f"{name} spills: {use}"
        assert use.occupancy(target, variant.config["num_warps"]) > 0, f"{name} has no room: {use}"
        if recorded:
            now = machine_code.row(stage, target, variant, use)
            assert now == recorded.get(machine_code.key(now)), (
                f"not as recorded: run `make machine-code ONLY='{name}'`, and look at the diff"
            )
        narrow = name.startswith(("token_mix_pooled", "token_mix_alpha"))  # 16 rows are few for HGMMA and for wide loads
        if not name.startswith((*GATHERING, *BY_LINES, *POINTWISE)):
            units = "HMMA|" + MATRIX_UNITS[target] if narrow else MATRIX_UNITS[target]
            assert use.count(units) > 0, f"{name} without matrix units: {use.instructions}"
        if target == "gfx942":
            continue
        if name.startswith(GATHERING):
            in_words = gathered if S < 8 or "lines" not in name else r"LDG\.E\.64"  # of four channels at most
            assert use.count(in_words) > 0, f"{name}: {use.instructions}"
        if name.startswith(("axial_gather_fwd", "axial_gather_bwd")):
            assert use.count(r"LDG.*(U16|U8)") == 0, f"{name}: {use.instructions}"
        if name.startswith((*POINTWISE, "offset_fc", "token_mix_fold")):
            assert use.count(WIDE) > 0 and use.count(r"STG.*128") > 0, f"{name}: {use.instructions}"
        if "scatter" in name and target == 90:
            assert use.count(rf"REDG.*F32x{min(S, 4)}") > 0 and use.count(r"REDG.*ADD\.F32\.") == 0, f"{name}: {use.instructions}"


def test_lines_are_gathered_out_of_shared_memory(kernels):
    """Each word stored once and read twice, without shuffles; a token's words side by side, one to a thread, each in a bank of its own."""
    _, target, found = kernels
    for variant, compiled, use in found:
        if not variant.name.startswith("token_mix_gather_lines"):
            continue
        has, code = variant.config, compiled.asm["ttgir"]
        assert has["BLOCK_E"] * has["CHANNELS"] * 2 >= 128  # bytes, of which each bank has 4
        layouts = set(re.findall(r"tt\.gather .*-> tensor<\d+xi\d+, (#\w+)>", code))
        assert all(re.search(rf"^{layout} = #ttg.blocked<{{sizePerThread = \[2\]", code, re.M) for layout in layouts) and layouts
        if target == "gfx942":
            continue
        words = has["BLOCK_L"] * has["BLOCK_Q"] * has["BLOCK_E"] // (32 * has["num_warps"])
        width = ".64" if has["CHANNELS"] == 4 else ""
        loop = {name: n for name, n in use.innermost.items() if name.startswith(("LDS", "STS", "SHFL"))}  # over further pieces
        assert loop == {f"LDS{width}": 2 * words, f"STS{width}": words}, variant.name


def test_a_warp_covers_adjacent_channels_of_a_token(kernels):
    """Threads lie along channels in every gathering tile [tokens, offset channels, channels]; over tokens, each would read a line alone."""
    for variant, compiled, _ in kernels[2]:
        code = compiled.asm["ttgir"]
        orders = dict(re.findall(r"^(#\w+) = #ttg.blocked<{.*order = \[2, (\d), \d\]}>", code, re.M))
        layouts = re.findall(r"(?:tt.load|tt.store|tt.atomic_rmw) .*tensor<\d+x\d+x\d+x!tt.ptr<\w+>, (#\w+)>", code)
        assert bool(layouts) == (variant.name.startswith((*GATHERING, *BY_LINES)))
        assert all(orders[layout] == "1" for layout in layouts), variant.name


def test_every_candidate_is_recorded_and_spills_nothing():
    if not (recorded := machine_code.read()):
        pytest.skip(f"no table of the machine code of Triton {triton.__version__}")
    expected = {machine_code.key(machine_code.identity(*what)) for what in machine_code.everything()}
    assert recorded.keys() == expected, "run `make machine-code`"
    assert not [row for row in recorded.values() if spills(int(row["spills"]), int(row["registers"]))]


@pytest.mark.exhaustive
@pytest.mark.parametrize("stage", ["stage 1", "stage 3"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_no_spills_in_other_dtypes(dtype, stage):
    for variant in variants(stage, dtype):
        registers, size = registers_and_spills(variant.compile(90).asm["cubin"])
        few = 24 if variant.name == "token_mix_fold clip" else 0  # with four branches, fold's keeps some on the stack, of 80 registers
        assert not spills(size, registers, few), f"{variant.name} spills {size} bytes in {dtype}"


TOKENS = {
    "x",
    "dy",
    "y",
    "offset",
    "doffset",
    "dx",
    "mean",
    "rstd",
    "w",
    "h",
    "c",
    "dw",
    "dh",
    "dc",
    "partial",
    "dscaled_weight",
    "gathered",
    "d",
    "d_w",
    "d_h",
    "t",
    "dt",
    "d_t",
    "begin",
}


def first_additions(code: str, names: list[str]) -> set[tuple[str, str]]:
    """Pairs of an argument and how many bits are first added to it, in the kernel's intermediate code."""
    pointers = {f"%{argument}": argument.removesuffix("_ptr") for argument in names if argument.endswith("_ptr")}
    bits = set()
    for line in code.splitlines():
        if (added := re.search(r"tt\.addptr (%\S+), .*[x ](i32|i64)\b", line)) and pointers.get(added[1]):
            bits.add((pointers[added[1]], added[2]))
        if made := re.match(r"\s*(%\S+) = (?:tt\.splat (%\S+) )?", line):  # names come again in other loops
            pointers[made[1]] = pointers.get(made[2], "")
    return bits


def test_row_addresses_are_64_bit(kernels):
    """Tokens times channels may pass 2^31: what is first added to the pointer of such a tensor must be computed in 64 bits."""
    for variant, compiled, _ in kernels[2]:
        names = variant.kernel.arg_names
        tokens = TOKENS & {name.removesuffix("_ptr") for name in names}
        if variant.name in ("axial_gather_bwd", "token_mix_doffset", "token_mix_doffset clip"):  # which leave dx alone
            tokens -= {"dx"}
        if "clip" not in variant.name:
            tokens -= {"t", "dt", "d_t"}
        bits = first_additions(compiled.asm["ttir"], names)
        assert {(token, "i64") for token in tokens} <= bits, f"{variant.name}: {bits}"
        assert not {(token, "i32") for token in tokens} & bits, f"{variant.name}: {bits}"
