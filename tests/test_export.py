"""Exported classifiers: no operator of ours in the files, any batch and image size, the model's own outputs."""

from __future__ import annotations

import sys

import atmnet
import pytest
import timm
import torch
from atmnet import exporting
from atmnet.__main__ import main
from atmnet.exporting import FORMATS, TOLERANCE, export, export_program
from atmnet.model import Downsample
from torch import Tensor, nn
from torch.export import Dim

SHAPES = [(1, 3, 33, 70), (3, 3, 64, 64), (2, 3, 96, 40)]


@pytest.fixture(scope="module")
def model() -> atmnet.ATMNet:
    """One block: tracing takes seconds for each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return atmnet.ATMNet(num_classes=5, depths=(1,), dims=(8,), mlp_ratios=(2,), share=(2,)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def program(model: atmnet.ATMNet) -> torch.export.ExportedProgram:
    program, smallest = export_program(model, (48, 64))
    assert smallest == (7, 7)
    return program


def assert_same(run, model: nn.Module) -> None:
    for shape in SHAPES:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        expected = model(images)
        assert (run(images) - expected).abs().max() <= TOLERANCE * expected.abs().max(), shape


def test_a_program_of_pytorchs_operators(program, model):
    names = {str(node.target) for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    assert names and all(name.startswith("aten.") for name in names)
    assert_same(program.module(), model)


@torch.no_grad()
def test_downsampling_is_traced_for_any_batch():
    """Downsampling compiled for one image on a CPU goes a way of its own."""
    layer = Downsample(4, 6)
    program = torch.export.export(layer, (torch.randn(2, 8, 10, 4),), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO, 2: Dim.AUTO},))
    for shape in ((1, 9, 7, 4), (3, 16, 12, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x))


def test_onnx_of_standard_operators(program, model, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    FORMATS["onnx"].write(program, tmp_path / "model.onnx")
    written = onnx.load(tmp_path / "model.onnx")
    assert {operators.domain for operators in written.opset_import} == {""} == {node.domain for node in written.graph.node}
    assert not written.functions
    batch, channels, height, width = written.graph.input[0].type.tensor_type.shape.dim
    assert channels.dim_value == 3 and all(side.dim_param for side in (batch, height, width))
    assert_same(FORMATS["onnx"].open(tmp_path / "model.onnx"), model)


@pytest.mark.parametrize("format", ["exported-program", pytest.param("aoti", marks=pytest.mark.exhaustive)])  # a minute of C++
def test_the_command_makes_a_package_and_says_how_to_run_it(format, program, model, tmp_path, monkeypatch, capsys):
    model.save_pretrained(tmp_path / "saved")
    monkeypatch.setattr(exporting, "export_program", lambda model, img_size: (program, (7, 7)))
    flags = ["--checkpoint", str(tmp_path / "saved"), "--format", format, "--img-size", "64x48"]
    with torch._inductor.config.patch({"cpp.simdlen": 0}):  # choosing vectors takes half of the compilation
        assert main(["export", *flags, "--out", str(tmp_path / "model.pt2")]) == 0
    printed = capsys.readouterr().out
    assert "any batch, images from 7 x 7" in printed and "less their mean [0.485, 0.456, 0.406]" in printed
    assert [file.name for file in tmp_path.glob("*.pt2")] == ["model.pt2"]

    def run(images: Tensor) -> Tensor:
        names = {"images": images}
        exec(printed[printed.index("import torch") :], names)
        return names["logits"]

    assert_same(run, model)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * self.scale


def test_a_program_on_disk(tmp_path):
    model = Small().eval()
    done = export(model, tmp_path / "model.pt2", "exported-program", (8, 16))
    assert (done.path, done.difference) == (tmp_path / "model.pt2", 0) and list(tmp_path.iterdir()) == [done.path]
    images = torch.randn(5, 3, 11, 9)
    torch.testing.assert_close(torch.export.load(done.path).module()(images), model(images))


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch, difference):
    path = tmp_path / "model.pt2"
    path.write_text("the file from before")
    monkeypatch.setattr(exporting, "_largest_difference", lambda *_: difference)
    with pytest.raises(RuntimeError, match="differs from the model by"):
        export(Small().eval(), path, "exported-program", (8, 8))
    assert path.read_text() == "the file from before" and list(tmp_path.iterdir()) == [path]


def test_the_comparison_is_relative_to_the_largest_logit():
    model = Small().eval()
    assert exporting._largest_difference(model, model, (8, 8)) == 0
    assert exporting._largest_difference(lambda images: model(images) * 1.5, model, (8, 8)) == pytest.approx(0.5)
    assert not exporting._largest_difference(lambda images: model(images) * float("nan"), model, (8, 8)) <= TOLERANCE


@pytest.mark.parametrize(
    "model,path,format,message",
    [
        (Small(), "model.pt2", "torchscript", "format must be one of exported-program, aoti, onnx, got 'torchscript'"),
        (Small(), "model.pt2", "onnx", r"model.pt2 must be a file \*.onnx in a folder that exists"),
        (Small(), "nowhere/model.onnx", "onnx", r"must be a file \*.onnx in a folder that exists"),
        (Small(), "model.pt2", "exported-program", "this one is torch.float32 on cpu in training mode"),
        (Small().eval().to("meta"), "model.pt2", "aoti", "this one is torch.float32 on meta in evaluation"),
    ],
)
def test_what_cannot_be_exported(tmp_path, model, path, format, message):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / path, format)


def test_models_of_one_image_size():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)).eval()
    with pytest.raises(ValueError, match="traced with images of 8 x 8, Sequential does not take images of any size"):
        export_program(model, (8, 8))


def test_onnx_needs_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'atm-triton\[export\]'"):
        export(timm.create_model("test_convnext").eval(), tmp_path / "model.onnx", "onnx")
