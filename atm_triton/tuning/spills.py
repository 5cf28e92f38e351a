"""Needs of kernels, told by their compiler before they run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .._triton import triton


def spills(run: Callable[[], object]) -> int:
    """Count the registers that a kernel of ``run`` keeps in memory, at most. The kernels are compiled and loaded, and not launched.

    One that has no room, as in shared memory, raises what Triton raises.
    """
    launch, thread, most = triton.JITFunction.run, threading.get_ident(), 0

    def load(kernel: Any, *args: Any, **options: Any) -> Any:
        nonlocal most
        if threading.get_ident() != thread:
            return launch(kernel, *args, **options)
        compiled = launch(kernel, *args, **options | {"warmup": True})
        if compiled is not None:  # as in the interpreter
            compiled._init_handles()
            most = max(most, compiled.n_spills)
        return compiled

    triton.JITFunction.run = load
    try:
        run()
    finally:
        triton.JITFunction.run = launch
    return most
