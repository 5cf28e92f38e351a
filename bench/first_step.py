"""Test whether a fresh process measures anything before or in its first training step: it must not, with a tuned table or without."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

SECONDS = 600  # until a process is given up


def benchmarks(model: str, device: str) -> str:
    """Count the benchmarks that a fresh process launched, as text; or why that says nothing."""
    try:
        child = subprocess.run([sys.executable, __file__, model, device], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"failed: no first step in {SECONDS} s"
    return child.stdout.strip() if child.returncode == 0 else f"failed: {(child.stderr.strip().splitlines() or [''])[-1]}"


def main(model: str, on: str) -> None:
    launched = 0

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal launched
            launched += 1
            return function(*args, **kwargs)

        return counted

    try:
        import triton
    except ImportError:
        print("no Triton")
        return
    for name in ("do_bench", "do_bench_cudagraph"):  # by which Triton, and this library, measure a kernel
        setattr(triton.testing, name, counting(getattr(triton.testing, name)))
    triton.runtime.Autotuner._bench = counting(triton.runtime.Autotuner._bench)

    import atmnet
    import timm
    import torch

    from atm_triton.tuning import tables

    images = torch.randn(2, 3, 224, 224, device=on)
    if images.is_cuda:
        torch.cuda.set_device(images.device)
    timm.create_model(atmnet.canonical_name(model)).to(images.device)(images).sum().backward()
    print(launched if launched or tables.table(images.device) else "no tuned table")


if __name__ == "__main__":
    main(*sys.argv[1:])
