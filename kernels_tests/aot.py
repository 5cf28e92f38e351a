"""Compile kernels for GPUs that are not there, and read what the machine code uses."""

from __future__ import annotations

import collections
import re
import subprocess
import tempfile
from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = (80, 90, 100, 120, "gfx942")


@dataclass
class Resources:
    """What one compiled kernel needs per thread, and its instructions by name (AMD: instructions of its assembly)."""

    registers: int
    spills: int  # bytes of stack or local memory on NVIDIA, spilled vector registers on AMD
    shared: int  # bytes
    instructions: collections.Counter

    def count(self, pattern: str) -> int:
        return sum(n for name, n in self.instructions.items() if re.match(pattern, name))


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
