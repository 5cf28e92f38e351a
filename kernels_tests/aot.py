"""Compile kernels for GPUs that are not there, and read what the machine code uses."""

from __future__ import annotations

import collections
import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = (80, 90, 100, 120, "gfx942")


class Multiprocessor(NamedTuple):
    """What its programs share: NVIDIA's streaming multiprocessor, AMD's compute unit."""

    warps: int
    registers: int  # per thread, all warps together: of 32 lanes on NVIDIA, of 64 on AMD
    shared: int  # bytes
    reserved: int  # of those, by each program


MULTIPROCESSORS = {
    80: Multiprocessor(64, 2048, 164 * 1024, 1024),
    90: Multiprocessor(64, 2048, 228 * 1024, 1024),
    100: Multiprocessor(64, 2048, 228 * 1024, 1024),
    120: Multiprocessor(48, 2048, 100 * 1024, 1024),
    "gfx942": Multiprocessor(32, 2048, 64 * 1024, 0),
}


@dataclass
class Resources:
    """What one compiled kernel needs per thread, and its instructions by name (AMD: instructions of its assembly)."""

    registers: int
    spills: int  # bytes of stack or local memory on NVIDIA, spilled vector registers on AMD
    shared: int  # bytes
    instructions: collections.Counter

    def count(self, pattern: str) -> int:
        return sum(n for name, n in self.instructions.items() if re.match(pattern, name))

    def occupancy(self, name: int | str, num_warps: int) -> float:
        """The share of a multiprocessor's warps that registers and shared memory have room for."""
        has = MULTIPROCESSORS[name]
        # Registers go to warps in steps of 8, and each of a multiprocessor's four schedulers has a quarter of them.
        by_registers = 4 * (has.registers // 4 // (-(-self.registers // 8) * 8)) // num_warps
        by_shared = has.shared // (self.shared + has.reserved) if self.shared + has.reserved else has.warps
        return min(by_registers, by_shared, has.warps // num_warps, 32) * num_warps / has.warps


def target(name: int | str) -> GPUTarget:
    return GPUTarget("cuda", name, 32) if isinstance(name, int) else GPUTarget("hip", name, 64)


def compile_kernel(kernel, arguments: dict[str, str], constexprs: dict, name: int | str, options: dict[str, int]):
    """Compile for target ``name``. ``arguments``: type of each runtime argument, such as ``*bf16``; pointers are 16-byte aligned."""
    signature = {a: "constexpr" if a in constexprs else arguments[a] for a in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(kernel.arg_names) if signature[a].startswith("*")}
    return triton.compile(ASTSource(kernel, signature, constexprs, aligned), target=target(name), options=options)


def resources(compiled) -> Resources:
    if "amdgcn" in compiled.asm:
        assembly = compiled.asm["amdgcn"]
        fields = {k: int(v) for k, v in re.findall(r"\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s+(\d+)", assembly)}
        names = collections.Counter(re.findall(r"^\s+([a-z]+_[a-z0-9_]+)", assembly, re.M))
        return Resources(
            fields["vgpr_count"], fields["vgpr_spill_count"] + fields["private_segment_fixed_size"], compiled.metadata.shared, names
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()

        def dump(*flags: str) -> str:
            command = [triton.knobs.nvidia.cuobjdump.path, *flags, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        use = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", dump("--dump-resource-usage"))}
        # STACK holds 16 bytes of parameters for some targets even without a spill: local loads and stores are the proof.
        names = collections.Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", dump("-sass"), re.M))
    return Resources(use["REG"], use["STACK"] + use["LOCAL"], compiled.metadata.shared, names)
