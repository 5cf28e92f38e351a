"""Compile kernels for GPUs that are not there, and read what the machine code uses."""

from __future__ import annotations

import collections
import itertools
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = (80, 90, 100, 120, "gfx942")


class Multiprocessor(NamedTuple):
    """A GPU's multiprocessor (NVIDIA's streaming multiprocessor, AMD's compute unit), with what its programs share."""

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
    """Needs of one compiled kernel per thread, and its instructions by name (AMD: instructions of its assembly)."""

    registers: int
    spills: int  # bytes of stack or local memory on NVIDIA, spilled vector registers on AMD
    shared: int  # bytes
    instructions: collections.Counter
    code: list[tuple[int, int]] = field(default_factory=list)  # NVIDIA: addresses, each with where it jumps to, or with itself
    innermost: collections.Counter = field(default_factory=collections.Counter)  # NVIDIA: instructions of loops without a loop in them

    def issued(self, trips: int) -> int:
        """Instructions of one thread, if its innermost loops are run through ``trips`` times, and all branches taken."""
        inner = innermost_loops(self.code)
        return sum(trips if any(a <= at <= b for a, b in inner) else 1 for at, _ in self.code)

    def issued_around(self) -> int:
        """Instructions of a trip through the loop around the innermost one, if a branch leaves that out with all that it needs."""
        ((first, last),) = innermost_loops(self.code)
        begin, end = min(((to, at) for at, to in self.code if to < first and at > last), key=lambda loop: loop[1] - loop[0])
        left_out = max(((at, to) for at, to in self.code if begin <= at < first and last < to <= end), key=lambda jump: jump[1] - jump[0])
        return sum(begin <= at <= end and not left_out[0] < at < left_out[1] for at, _ in self.code)

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
    # Otherwise it computes whether integers overflow, and throws that away: the machine code is the same.
    options = options | {"sanitize_overflow": False}
    return triton.compile(ASTSource(kernel, signature, constexprs, aligned), target=target(name), options=options)


def resources(compiled) -> Resources:
    return all_resources([compiled])[0]


def all_resources(compiled: list) -> list[Resources]:
    """Resources of kernels for one target."""
    if compiled and "amdgcn" in compiled[0].asm:
        return [_amd_resources(kernel) for kernel in compiled]
    found = []
    for kernel, lines in zip(compiled, _disassembled(compiled), strict=True):
        names = collections.Counter(name for _, name, _ in lines)
        lines = [line for line in lines if line[1] != "NOP"]
        jumps = [re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None for _, name, rest in lines]
        code = [(int(at, 16), int(jump[1] if jump else at, 16)) for (at, _, _), jump in zip(lines, jumps, strict=True)]
        inner = innermost_loops(code)
        looped = collections.Counter(line[1] for line, (at, _) in zip(lines, code, strict=True) if any(a <= at <= b for a, b in inner))
        found.append(Resources(*registers_and_spills(kernel.asm["cubin"]), kernel.metadata.shared, names, code, looped))
    return found


def innermost_loops(code: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first and the last address of each: a jump back makes a loop."""
    loops = [(to, at) for at, to in code if to < at]
    return [loop for loop in loops if not any(loop[0] <= a and b < loop[1] for a, b in loops)]


def _amd_resources(compiled) -> Resources:
    assembly = compiled.asm["amdgcn"]
    fields = {k: int(v) for k, v in re.findall(r"\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s+(\d+)", assembly)}
    names = collections.Counter(re.findall(r"^\s+([a-z]+_[a-z0-9_]+)", assembly, re.M))
    spills = fields["vgpr_spill_count"] + fields["private_segment_fixed_size"]
    return Resources(fields["vgpr_count"], spills, compiled.metadata.shared, names)


def registers_and_spills(cubin: bytes) -> tuple[int, int]:
    # STACK holds 16 bytes of parameters for some targets even without a spill: local loads and stores are the proof.
    use = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _run("cuobjdump", cubin, "--dump-resource-usage")))
    return int(use["REG"]), int(use["STACK"]) + int(use["LOCAL"])


def _disassembled(compiled: list) -> list[list[tuple[str, str, str]]]:
    """Instructions of each kernel: addresses, names and the rest. In one go: the disassembler takes a third of a second to start."""
    codes = [_instructions(kernel.asm["cubin"]) for kernel in compiled]
    target = f"SM{compiled[0].metadata.target.arch}"
    assembly = _run("nvdisasm", b"".join(codes), "--no-dataflow", "--binary", target)
    lines = iter(re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", assembly, re.M))
    found = [list(itertools.islice(lines, len(code) // 16)) for code in codes]
    assert not list(lines) and all(found)
    return found


def _instructions(cubin: bytes) -> bytes:
    """Instructions of its kernel, 16 bytes each: section .text.<kernel> of an ELF file, whose table gives the place and length of each."""
    table, size, count, names = *struct.unpack_from("<Q", cubin, 40), *struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<I20xQQ", cubin, table + i * size) for i in range(count)]
    (code,) = (cubin[at : at + length] for name, at, length in sections if cubin.startswith(b".text.", sections[names][1] + name))
    return code


def _run(tool: str, content: bytes, *flags: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(content)
        file.flush()
        command = [getattr(triton.knobs.nvidia, tool).path, *flags, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
