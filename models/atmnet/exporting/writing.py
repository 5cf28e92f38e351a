"""Write a model and compare what was written with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from atm_triton.files import replaced

from ..weights.reader import PathLike
from .description import data_config, metadata_of
from .formats import FORMATS, check_onnx
from .tracing import TOLERANCE, export_program, largest_difference, sizes


@dataclass(frozen=True)
class Exported:
    """A file that was run and compared with the model."""

    path: Path
    difference: float  # the largest, relative to the largest logit
    smallest: tuple[int, int]  # height and width of the smallest images that the program was made for
    metadata: dict[str, str]  # as the file says it


def export(
    model: nn.Module, path: PathLike, format: str, img_size: tuple[int, int] | None = None, classes: Sequence[str] | None = None
) -> Exported:
    """Write a classifier or a segmenter for any number of images, of any size from a smallest, and compare it at three sizes.

    The file says what its images and outputs mean: ``task``, ``mean``, ``std``, ``input_size``, ``interpolation``, ``classes``, of a
    classifier ``crop_pct``, and of one of videos ``frames``, which its clips must have, and ``sampling`` and ``frame_stride``, which say
    how they are chosen. An AOTInductor package takes a C++ compiler and minutes, and is for CPUs like this one.

    Args:
        model: On the CPU, in evaluation mode: images ``[B, in_chans, H, W]``, or clips ``[B, in_chans, frames, H, W]``, to logits
            ``[B, num_classes]``, or of a model of ``create_segmenter`` to ``[B, num_classes, H, W]``.
        path: The file, replaced only when all went well; it ends in ``.onnx`` for ONNX, else in ``.pt2``.
        format: ``"exported-program"``, ``"aoti"`` or ``"onnx"``.
        img_size: Height and width that the file must take; None for the model's own, or 224.
        classes: Names of the outputs, where the model does not know them.

    Raises:
        ValueError: one of these is not so, or the model cannot be exported for images of any size; of detectors PyTorch's own reason.
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
        check_onnx()
    if img_size is None:
        height, width = (data_config(model) or {"input_size": (3, 224, 224)})["input_size"][1:]
        img_size = height, width
    program, smallest = export_program(model, img_size)
    with replaced(path) as partial:
        chosen.write(program, partial, metadata_of(model, img_size, classes))
        difference = largest_difference(chosen.open(partial), model, sizes(model, img_size, smallest))
        if not difference <= TOLERANCE:
            raise RuntimeError(f"the {format} file differs from the model by {difference:.1e} of the largest logit, more than {TOLERANCE}")
        metadata = chosen.metadata(partial)
    return Exported(path, difference, smallest, metadata)
