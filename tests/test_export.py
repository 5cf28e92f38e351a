"""Exported classifiers: no operator of ours in the files, any batch and image size, the model's own outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atmnet
import pytest
import timm
import torch
from atmnet.__main__ import main
from atmnet.exporting import FORMATS, TOLERANCE, export, export_program, tracing, writing
from atmnet.predicting import predict
from atmnet.stages import Downsample
from pages import blocks
from torch import Tensor, nn
from torch.export import Dim
from torchvision.transforms.functional import to_pil_image

DEPLOY = Path(__file__).parents[1] / "docs/tutorials/deploy.md"

SHAPES = [(1, 3, 7, 6), (1, 3, 33, 70), (3, 3, 64, 64), (2, 3, 96, 40)]


@pytest.fixture(scope="module")
def model() -> atmnet.ATMNet:
    """One block: tracing takes seconds for each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return atmnet.ATMNet(num_classes=5, depths=(1,), dims=(8,), mlp_ratios=(2,), share=(2,)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def program(model: atmnet.ATMNet) -> torch.export.ExportedProgram:
    program, smallest = export_program(model, (48, 6))
    assert smallest == (7, 6)
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
    FORMATS["onnx"].write(program, tmp_path / "model.onnx", {"task": "none"})
    written = onnx.load(tmp_path / "model.onnx")
    assert {operators.domain for operators in written.opset_import} == {""} == {node.domain for node in written.graph.node}
    assert not written.functions
    batch, channels, height, width = written.graph.input[0].type.tensor_type.shape.dim
    assert channels.dim_value == 3 and [side.dim_param for side in (batch, height, width)] == ["batch", "height", "width"]
    assert_same(FORMATS["onnx"].open(tmp_path / "model.onnx"), model)


@pytest.mark.parametrize("format", ["exported-program", pytest.param("aoti", marks=pytest.mark.exhaustive)])  # a minute of C++
def test_the_command_makes_a_package_and_says_how_to_run_it(format, program, model, tmp_path, monkeypatch, capsys):
    model.save_pretrained(tmp_path / "saved")
    monkeypatch.setattr(writing, "export_program", lambda model, img_size: (program, (7, 6)))
    flags = ["--checkpoint", str(tmp_path / "saved"), "--format", format, "--img-size", "64x48"]
    with torch._inductor.config.patch({"cpp.simdlen": 0}):  # choosing vectors takes half of the compilation
        assert main(["export", *flags, "--out", str(tmp_path / "model.pt2")]) == 0
    printed = capsys.readouterr().out
    assert "any batch, images from 7 x 6" in printed and "less their mean [0.485, 0.456, 0.406]" in printed
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
    monkeypatch.setattr(writing, "largest_difference", lambda *_: difference)
    with pytest.raises(RuntimeError, match="differs from the model by"):
        export(Small().eval(), path, "exported-program", (8, 8))
    assert path.read_text() == "the file from before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("picture,crop", [((48, 48), 1.0), ((200, 90), 0.75)])
def test_the_page_classifies_with_onnxruntime_alone(tmp_path, monkeypatch, capsys, picture, crop):
    """The program of ten lines on docs/tutorials/deploy.md says what ``predict`` does."""
    pytest.importorskip("onnxscript")
    (script,) = (block.code for block in blocks(DEPLOY) if "InferenceSession(sys.argv[1])" in block.code)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    model.pretrained_cfg |= {"label_names": ["ant", "bee", "cow"], "input_size": (3, 48, 48), "crop_pct": crop, "interpolation": "bicubic"}
    export(model, tmp_path / "model.onnx", "onnx")
    pixels = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 4), picture[::-1], mode="bicubic").clamp(0, 1)[0]
    to_pil_image(pixels).save(tmp_path / "picture.png")
    expected = predict(model, tmp_path / "picture.png", top=5)
    monkeypatch.setattr(sys, "argv", ["classify.py", str(tmp_path / "model.onnx"), str(tmp_path / "picture.png")])
    for name in ("torch", "timm", "atmnet"):
        monkeypatch.setitem(sys.modules, name, None)
    capsys.readouterr()  # what exporting prints
    exec(script, {})
    said = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert {name: float(said[name]) for name in said} == pytest.approx(
        {guess.name: guess.probability for guess in expected.predictions}, abs=2e-4 if crop == 1 else 0.02
    )


def test_a_program_says_what_it_takes(tmp_path):
    model = timm.create_model("test_resnet", num_classes=2).eval()
    done = export(model, tmp_path / "model.pt2", "exported-program", (32, 40), classes=["ant", "bee"])
    beside = {"metadata.json": ""}
    torch.export.load(done.path, extra_files=beside)
    said = json.loads(beside["metadata.json"])
    assert said == done.metadata and (said["task"], said["interpolation"]) == ("image-classification", "bilinear")
    wanted = {"classes": ["ant", "bee"], "input_size": [3, 32, 40], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.95}
    assert {name: json.loads(said[name]) for name in wanted} == wanted


def test_the_comparison_is_relative_to_the_largest_logit():
    model = Small().eval()
    sizes = [(2, 8, 8), (1, 9, 10)]
    assert tracing.largest_difference(model, model, sizes) == 0
    assert tracing.largest_difference(lambda images: model(images) * 1.5, model, sizes) == pytest.approx(0.5)
    assert not tracing.largest_difference(lambda images: model(images) * float("nan"), model, sizes) <= TOLERANCE


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
    with pytest.raises(ValueError, match="Sequential cannot be exported for images of any size: RuntimeError: "):
        export_program(model, (8, 8))


class Counting(nn.Module):
    """Multiplies by the rows of the images in steps."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.scale = step, nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * self.scale * sum(1 for _ in range(images.shape[2] // self.step))


@pytest.mark.parametrize("step,message", [(1, "traced with images of 256 x 256, it takes these alone"), (16, "the program differs by")])
def test_what_tracing_fixes(step, message):
    with pytest.raises(ValueError, match=f"Counting cannot be exported for images of any size: .*{message}"):
        export_program(Counting(step).eval(), (20, 20))


def test_onnx_needs_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'atm-triton\[export\]'"):
        export(timm.create_model("test_convnext").eval(), tmp_path / "model.onnx", "onnx")
