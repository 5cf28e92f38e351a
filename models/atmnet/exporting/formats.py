"""Kinds of files: how a program is written to each, with what its images and outputs mean, and how it is run from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from atm_triton.strict_json import dumps, loads

AXES = {0: "batch", -2: "height", -1: "width"}  # of the images or clips, by ONNX's names
BESIDE = "metadata.json"  # in an exported program

Run = Callable[[Tensor], Tensor]
Metadata = Mapping[str, str]


@dataclass(frozen=True)
class Format:
    suffix: str
    write: Callable[[ExportedProgram, Path, Metadata], object]
    open: Callable[[Path], Run]
    metadata: Callable[[Path], dict[str, str]]
    usage: str  # Python that runs {path}


def _write_program(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    torch.export.save(program, path, extra_files={BESIDE: dumps(dict(metadata))})


def _program_metadata(path: Path) -> dict[str, str]:
    beside = {BESIDE: ""}
    torch.export.load(path, extra_files=beside)
    return dict(loads(beside[BESIDE]))


def _write_aoti(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    configs = {"aot_inductor.metadata": dict(metadata)}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)


def _open_aoti(path: Path) -> Any:
    return torch._inductor.aoti_load_package(str(path))


def _write_onnx(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    check_onnx()
    name = program.graph_signature.user_inputs[0]
    ndim = next(node for node in program.graph.nodes if node.name == name).meta["val"].ndim
    axes = {axis % ndim: called for axis, called in AXES.items()}
    written: Any = torch.onnx.export(
        program, (), dynamo=True, input_names=["images"], output_names=["logits"], dynamic_shapes=(axes,), verbose=False
    )
    written.model.metadata_props.update(metadata)
    written.save(path, external_data=False)


def _open_onnx(path: Path) -> Run:
    session = _session(path)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def check_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX needs {error.name}: pip install 'atm-triton[export]'") from error


FORMATS = {
    "exported-program": Format(
        ".pt2",
        _write_program,
        lambda path: torch.export.load(path).module(),
        _program_metadata,
        'import torch\nbeside = {{"metadata.json": ""}}\nmodel = torch.export.load("{path}", extra_files=beside).module()\n'
        "logits = model(images)",
    ),
    "aoti": Format(
        ".pt2",
        _write_aoti,
        _open_aoti,
        lambda path: dict(_open_aoti(path).get_metadata()),
        'import torch\nmodel = torch._inductor.aoti_load_package("{path}")\nmetadata = model.get_metadata()\nlogits = model(images)',
    ),
    "onnx": Format(
        ".onnx",
        _write_onnx,
        _open_onnx,
        lambda path: dict(_session(path).get_modelmeta().custom_metadata_map),
        'import onnxruntime\nsession = onnxruntime.InferenceSession("{path}")\nmetadata = session.get_modelmeta().custom_metadata_map\n'
        'logits = session.run(None, {{"images": images.numpy()}})[0]',
    ),
}
