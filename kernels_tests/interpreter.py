"""Run the real @triton.jit kernels on CPU tensors, inside a process that also compiles and traces them.

Triton's own switch for its interpreter replaces the kernels when they are defined, after which nothing can compile them. Here they are
interpreted only inside ``with interpreted():``. This leans on private names of Triton, so it runs in the tests of every supported version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from types import SimpleNamespace
from unittest import mock

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter as _interpreter
from triton.runtime.jit import JITFunction

from atm_triton.ops import offset_fc


def _round_to_bf16(a: np.ndarray) -> np.ndarray:
    """Round to nearest even, as hardware does; the interpreter truncates."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    return np.where(np.isnan(a), 0x7FC0, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _bf16_as_fp32(handle):
    """The interpreter keeps bf16 as its bit pattern, and its dot would multiply those."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return _interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


# Looking a function over takes longer than a small one runs: once is enough.
_Interpreted = functools.cache(_interpreter.InterpretedFunction)
_EVERY_LANGUAGE_MODULE = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})  # as if a function saw both


@contextlib.contextmanager
def interpreted():
    Builder = _interpreter.InterpreterBuilder
    cast_impl, create_dot = Builder.cast_impl, Builder.create_dot
    call, run = JITFunction.__call__, JITFunction.run
    patch_lang, builder = _interpreter._patch_lang, _interpreter.interpreter_builder
    options = builder.options

    def cast(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return _interpreter.TensorHandle(_round_to_bf16(src.data), tl.bfloat16)
        return cast_impl(self, src, dst_type)

    def dot(self, a, b, *rest):
        return create_dot(self, _bf16_as_fp32(a), _bf16_as_fp32(b), *rest)

    def call_interpreted(self, *args, **kwargs):  # a jitted function called inside a kernel
        return _Interpreted(self.fn).rewrite()(*args, **kwargs)

    def run_interpreted(self, *args, grid, warmup=False, **kwargs):
        scope = patch_lang(_EVERY_LANGUAGE_MODULE)  # for the kernel and all that it calls
        try:
            return _Interpreted(self.fn).run(*args, grid=grid, warmup=warmup, **kwargs)
        finally:
            scope.restore()

    # The weight gradients' kernel takes all steps of a chunk, however few its tokens: of the real 2048, none would have a second chunk.
    with triton.knobs.runtime.scope(), mock.patch.object(offset_fc, "CHUNK", 64):
        triton.knobs.runtime.interpret = True
        Builder.cast_impl, Builder.create_dot = cast, dot
        JITFunction.__call__, JITFunction.run = call_interpreted, run_interpreted
        _interpreter._patch_lang = lambda fn: _interpreter._LangPatchScope()
        # Otherwise it computes whether integers overflow, and asks nobody: that takes as long as everything else.
        builder.options = dataclasses.replace(options, sanitize_overflow=False)
        try:
            yield
        finally:
            Builder.cast_impl, Builder.create_dot = cast_impl, create_dot
            JITFunction.__call__, JITFunction.run = call, run
            _interpreter._patch_lang, builder.options = patch_lang, options
