"""Classifiers for use without this library: torch.export programs, AOTInductor packages, ONNX. Exporting takes the plain PyTorch path by
itself: no operator of ours is in the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from atm_triton.files import replaced

from .images import channels
from .weights.reader import PathLike

TOLERANCE = 1e-4  # of the largest logit

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A kind of file: how a program is written to it and run from there."""

    suffix: str
    write: Callable[[ExportedProgram, Path], object]
    open: Callable[[Path], Run]
    usage: str  # Python that runs {path}


@dataclass(frozen=True)
class Exported:
    """A file that was run and compared with the model."""

    path: Path
    difference: float  # the largest, relative to the largest logit
    smallest: tuple[int, int]  # height and width of the smallest images that the program was made for


def _write_aoti(program: ExportedProgram, path: Path) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    _check_onnx()
    written: Any = torch.onnx.export(program, (), dynamo=True, input_names=["images"], output_names=["logits"], verbose=False)
    written.save(path, external_data=False)


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _check_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX needs {error.name}: pip install 'atm-triton[export]'") from error


FORMATS = {
    "exported-program": Format(
        ".pt2",
        lambda program, path: torch.export.save(program, path),
        lambda path: torch.export.load(path).module(),
        'import torch\nmodel = torch.export.load("{path}").module()\nlogits = model(images)',
    ),
    "aoti": Format(
        ".pt2",
        _write_aoti,
        lambda path: torch._inductor.aoti_load_package(str(path)),
        'import torch\nmodel = torch._inductor.aoti_load_package("{path}")\nlogits = model(images)',
    ),
    "onnx": Format(
        ".onnx",
        _write_onnx,
        _open_onnx,
        'import onnxruntime\nsession = onnxruntime.InferenceSession("{path}")\nlogits = session.run(None, {{"images": images.numpy()}})[0]',
    ),
}


def export(model: nn.Module, path: PathLike, format: str, img_size: tuple[int, int] = (224, 224)) -> Exported:
    """Write a classifier for any number of images, of any size from a smallest, and compare it with the model at two batches and sizes.

    An AOTInductor package takes a C++ compiler and minutes, and is for CPUs like this one.

    Args:
        model: On the CPU, in evaluation mode: images ``[B, in_chans, H, W]`` to logits ``[B, num_classes]``.
        path: The file, replaced only when all went well; it ends in ``.onnx`` for ONNX, else in ``.pt2``.
        format: ``"exported-program"``, ``"aoti"`` or ``"onnx"``.
        img_size: Height and width to trace with. Half of the last map must be left of them: about 64 pixels for an ATMNet.

    Raises:
        ValueError: one of these is not so, or the model does not take images of any size.
        ImportError: ``format="onnx"`` without the extra ``export``.
        RuntimeError: the file computes something else, by more than 1e-4 of the largest logit.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    chosen = FORMATS[format]
    if path.suffix != chosen.suffix or not path.parent.is_dir():
        raise ValueError(f"{path} must be a file *{chosen.suffix} in a folder that exists")
    if format == "onnx":
        _check_onnx()
    program, smallest = export_program(model, img_size)
    with replaced(path) as partial:
        chosen.write(program, partial)
        difference = _largest_difference(chosen.open(partial), model, img_size)
        if not difference <= TOLERANCE:
            raise RuntimeError(f"the {format} file differs from the model by {difference:.1e} of the largest logit, more than {TOLERANCE}")
    return Exported(path, difference, smallest)


def export_program(model: nn.Module, img_size: tuple[int, int] = (224, 224)) -> tuple[ExportedProgram, tuple[int, int]]:
    """The model as a program of PyTorch's own operators with dynamic batch, height and width, and the smallest height and width that it
    was made for; arguments and errors are those of ``export``."""
    places = sorted({str(parameter.device) for parameter in model.parameters()})
    dtypes = sorted({str(parameter.dtype) for parameter in model.parameters()})
    if places != ["cpu"] or model.training or dtypes != ["torch.float32"]:
        mode = "training" if model.training else "evaluation"
        raise ValueError(
            "exporting takes a float32 model on the CPU in evaluation mode, model.cpu().float().eval(); "
            f"this one is {', '.join(dtypes)} on {', '.join(places)} in {mode} mode"
        )
    images = torch.zeros(2, channels(model), *img_size)  # a batch of 1 would stay 1
    program = torch.export.export(model, (images,), dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},))
    try:
        _largest_difference(program.module(), model, img_size)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"traced with images of {img_size[0]} x {img_size[1]}, {type(model).__name__} does not take images of any size ({error}): "
            "if it is a model that does, as an ATMNet is, trace with larger ones, of 64 or more"
        ) from error
    return program.run_decompositions({}, decompose_custom_triton_ops=True), _smallest(program)


def _smallest(program: ExportedProgram) -> tuple[int, int]:
    """The smallest height and width of the images of a program that takes more than one."""
    name = program.graph_signature.user_inputs[0]
    sides = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape[2:]
    height, width = (int(program.range_constraints[side.node.expr].lower) for side in sides)
    return height, width


@torch.no_grad()
def _largest_difference(run: Run, model: nn.Module, img_size: tuple[int, int]) -> float:
    """Compare at another batch and at another size than traced, relative to the largest logit."""
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, more in ((3, 0), (1, 32)):
        images = torch.randn(batch, channels(model), img_size[0] + more, img_size[1] + 2 * more, generator=generator)
        expected = model(images)
        differences.append((run(images) - expected).abs().max() / expected.abs().max())
    return float(torch.stack(differences).max())  # NaN if there is one
