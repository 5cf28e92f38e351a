"""A model as a program of PyTorch's own operators for images of any size."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from ..tasks import input_shape
from ..weights.reader import reason
from .formats import Run

TOLERANCE = 1e-4  # of the largest logit
LEAST = 64  # pixels to trace with: of a map of one token PyTorch would keep the one
DOUBLINGS = 2  # of these, for a network that reduces images further

Size = tuple[int, int]


def export_program(model: nn.Module, img_size: Size) -> tuple[ExportedProgram, Size]:
    """The program, with dynamic batch, height and width, and the smallest height and width that it takes; arguments and errors are those
    of ``export``."""
    places = sorted({str(parameter.device) for parameter in model.parameters()})
    dtypes = sorted({str(parameter.dtype) for parameter in model.parameters()})
    if places != ["cpu"] or model.training or dtypes != ["torch.float32"]:
        mode = "training" if model.training else "evaluation"
        raise ValueError(
            "exporting takes a float32 model on the CPU in evaluation mode, model.cpu().float().eval(); "
            f"this one is {', '.join(dtypes)} on {', '.join(places)} in {mode} mode"
        )
    try:
        program = _trace(model, img_size).run_decompositions({}, decompose_custom_triton_ops=True)
        smallest = _extend(program, img_size)
        difference = largest_difference(program.module(), model, sizes(model, img_size, smallest))
        if not difference <= TOLERANCE:
            raise ValueError(f"the program differs by {difference:.1e} of the largest logit")
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"{type(model).__name__} cannot be exported for images of any size: {reason(error)}") from error
    return program, smallest


def _trace(model: nn.Module, img_size: Size) -> ExportedProgram:
    """Trace with images large enough that no side of a map is one, and with those alone."""
    for doublings in range(DOUBLINGS + 1):
        height, width = (max(side, LEAST) * 2**doublings for side in img_size)
        images = torch.zeros(2, *input_shape(model, (height, width)))  # a batch of 1 would stay 1
        with redirect_stderr(StringIO()):  # where PyTorch writes thousands of lines before it says why it cannot
            dynamic = dict.fromkeys((0, images.ndim - 2, images.ndim - 1), Dim.AUTO)
            program = torch.export.export(model, (images,), dynamic_shapes=(dynamic,))
        if all(isinstance(side, torch.SymInt) and side.node.expr in program.range_constraints for side in _sides(program)):
            return program
    raise ValueError(f"traced with images of {height} x {width}, it takes these alone")


def _sides(program: ExportedProgram) -> tuple[Any, Any, Any]:
    """Batch, height and width of the program's images, symbols where they are dynamic."""
    name = program.graph_signature.user_inputs[0]
    batch, *_, height, width = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape
    return batch, height, width


def _extend(program: ExportedProgram, img_size: Size) -> Size:
    """The program's smallest images, made to take those of ``img_size``, and without PyTorch's guards.

    They are against maps of one token, for which its convolutions may choose another layout in memory. The operators are the same: whoever
    calls this checks what they compute, at the smallest size too.
    """
    symbols = [side.node.expr for side in _sides(program)[1:]]
    ranges = program.range_constraints
    height, width = (min(int(ranges[symbol].lower), side) for symbol, side in zip(symbols, img_size, strict=True))
    for symbol, side in zip(symbols, (height, width), strict=True):
        ranges[symbol] = ValueRanges(side, ranges[symbol].upper)
    program._guards_code = []
    return height, width


def sizes(model: nn.Module, img_size: Size, smallest: Size) -> list[tuple[int, int, int]]:
    """Batches, heights and widths to compare at: the smallest, and two larger, one of them odd if the model takes it."""
    height, width = img_size
    odd = 2, height + 17, width + 5
    return [(3, *smallest), (1, height + 32, width + 64), odd if _takes(model, *odd) else (2, height + 64, width + 32)]


@torch.no_grad()
def _takes(model: nn.Module, *size: int) -> bool:
    batch, height, width = size
    try:
        model(torch.zeros(batch, *input_shape(model, (height, width))))
    except (AssertionError, RuntimeError):
        return False
    return True


@torch.no_grad()
def largest_difference(run: Run, model: nn.Module, sizes: list[tuple[int, int, int]]) -> float:
    """Compare, relative to the largest logit."""
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, height, width in sizes:
        images = torch.randn(batch, *input_shape(model, (height, width)), generator=generator)
        expected: Tensor = model(images)
        differences.append((run(images) - expected).abs().max() / expected.abs().max())
    return float(torch.stack(differences).max())  # NaN if there is one
