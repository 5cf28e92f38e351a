"""Shapes and paths on which the operators of ``atm_triton.testing`` are tested."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from interpreter import interpreted

from atm_triton.testing import Shape

SHAPES = [
    Shape(2, 5, 7, 8, 2),
    Shape(1, 1, 9, 3, 1),  # one row
    Shape(2, 11, 1, 2, 4),  # one column
    Shape(1, 1, 1, 4, 2),
    Shape(2, 3, 13, 5, 3),  # primes, C not a power of two
    Shape(2, 3, 13, 40, 4),  # more than one block of tokens and of channels, of more than one sample
    Shape(2, 3, 4, 1, 8),  # all channels share one offset
    Shape(0, 8, 4, 1, 2),  # empty batch
    Shape(1, 2, 70, 2, 8),  # a line longer than a block
]
# The same of three axes, with as many tokens in all frames; channels are not so few that a gradient is a number or two.
VOLUMES = [
    Shape(2, 2, 4, 8, 2),
    Shape(1, 1, 3, 8, 1),
    Shape(2, 4, 1, 2, 4),
    Shape(1, 1, 1, 4, 2),
    Shape(2, 2, 5, 5, 3),
    Shape(2, 2, 7, 40, 4),
    Shape(2, 1, 4, 1, 16),
    Shape(0, 8, 4, 1, 2),
    Shape(1, 1, 70, 2, 8),
]
STAGE_3 = Shape(2, 6, 10, 80, 4)  # its channels, over which the interpreter loops for seconds


@dataclass(frozen=True)
class Path:
    """The device and dtypes with which a case runs."""

    name: str
    device: str
    dtypes: tuple[torch.dtype, ...]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with interpreted() if self.name == "interpreter" else contextlib.nullcontext():
            yield

    def __str__(self) -> str:
        return self.name


HALVES = (torch.float32, torch.bfloat16, torch.float16)
PLAIN = Path("plain", "cpu", (*HALVES, torch.float64))
INTERPRETER = Path("interpreter", "cpu", HALVES)  # the real kernels, on CPU tensors
GPU = Path("gpu", "cuda", HALVES)
on_gpu = pytest.param(GPU, marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")])
PATHS = [PLAIN, INTERPRETER, on_gpu]
