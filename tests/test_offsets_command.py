"""python -m atmnet offsets"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import atmnet
import numpy as np
import pytest
import timm
import torch
from atmnet.__main__ import main
from atmnet.images import open_image
from atmnet.offsets import Histograms, collect
from atmnet.offsets.images import View
from PIL import Image
from torch import nn

KWARGS = dict(depths=(1, 2), dims=(8, 8), share=(2, 2), mlp_ratios=(1, 1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A small model whose offsets are some tokens long, and the file that holds it."""
    torch.manual_seed(0)
    model = timm.create_model("atmnet_xt", num_classes=2, **KWARGS).eval()
    for name, p in model.named_parameters():
        if ".offset.weight" in name:
            nn.init.normal_(p)
    path = tmp_path_factory.mktemp("trained") / "small.safetensors"
    recipe = dict(model_kwargs=[f"{name}={value}" for name, value in KWARGS.items()])
    atmnet.save(model, path, model="atmnet_xt", num_classes=2, img_size=32, recipe=json.dumps(recipe))
    return model, path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five of several sizes, some in a folder of their own."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(5):
        path = folder / ("more" if number > 2 else "") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 30 + 5 * number, 3), dtype=np.uint8)).save(path)
    return folder


def test_a_folder(trained: tuple[nn.Module, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, checkpoint = trained
    line = ["offsets", "--checkpoint", str(checkpoint), "--images", str(images), "--out", str(tmp_path), "--img-size", "24x32"]
    assert main([*line, "--panels", "2", "--batch-size", "2", "--html", "--at", "3,30", "--at", "12,0"]) == 0
    printed = capsys.readouterr().out
    assert "images: 5, resized to 24 x 32; offset layers: layer 1_1, layer 2_1-2" in printed
    assert "5 in all" in printed and "2 of them; --panels for more" in printed and "untrained" not in printed
    assert sorted(path.name for path in (tmp_path / "panels").iterdir()) == ["001-0.png", "002-1.png"]
    page = (tmp_path / "offsets.html").read_text()
    assert "Where the tokens of atmnet_xt look" in page
    data = json.loads(page.split('<script id="data" type="application/json">')[1].split("</script>")[0])
    assert [(entry["name"], entry["width"], entry["height"]) for entry in data] == [("0.png", 32, 24), ("1.png", 32, 24)]
    Image.open(tmp_path / "histograms.png").verify()

    view, expected = View(model, (24, 32)), Histograms()
    files = [*sorted(images.glob("*.png")), *sorted(images.glob("more/*.png"))]
    expected.update(collect(model, torch.stack([view.pixels(open_image(file)) for file in files])))
    with np.load(tmp_path / "histograms.npz") as saved:
        assert saved["images"] == 5 and len(saved.files) == 1 + 2 * 2 * 3
        for (layer, axis), found in expected.counts.items():
            assert saved[f"{layer}/{axis}/counts"].tolist() == found.counts.tolist()
            assert saved[f"{layer}/{axis}/outside"].tolist() == found.outside.tolist()
            assert found.counts.any()


def test_the_picture_is_what_the_network_sees(trained: tuple[nn.Module, Path]) -> None:
    """The whole image in the model's size, squeezed rather than cropped."""
    image = Image.new("RGB", (60, 30), (200, 10, 90))
    image.paste((20, 240, 130), (30, 0, 60, 30))
    view = View(trained[0], (16, 24))
    pixels = view.pixels(image)
    picture = np.asarray(view.picture(pixels)).astype(int)
    assert pixels.shape == (3, 16, 24) and picture.shape == (16, 24, 3)
    assert abs(picture[:, :8] - (200, 10, 90)).max() <= 3 and abs(picture[:, 16:] - (20, 240, 130)).max() <= 3
    assert View(trained[0]).size == (224, 224)


def test_photographs_are_seen_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.jpg", exif=exif)
    assert open_image(tmp_path / "photo.jpg").size == (20, 30)


def test_an_untrained_model_is_told_of(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["offsets", "--model", "ATMNet-xT", "--images", str(images / "0.png"), "--out", str(tmp_path), "--img-size", "16"]) == 0
    assert "untrained model, all close to 0" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "panels").iterdir()] == ["001-0.png"] and not (tmp_path / "offsets.html").exists()


def test_what_cannot_be_read_is_left_out(trained: tuple[nn.Module, Path], images: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    line = ["offsets", "--checkpoint", str(trained[1]), "--out", str(tmp_path / "out"), "--panels", "0", "--images"]
    assert main([*line, str(tmp_path / "broken.jpg"), str(images / "1.png")]) == 1
    captured = capsys.readouterr()
    assert f"left out, cannot be read: {tmp_path / 'broken.jpg'}" in captured.err and "1 in all" in captured.out
    assert main([*line, str(tmp_path / "broken.jpg")]) == 1
    assert "in all" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "more,message",
    [
        (["--images", "nowhere.png"], "nowhere.png"),
        (["--at", "30,39"], "--at 30,39 is outside {images}/0.png, which is 30 x 40 pixels: x is 0 to 29, y 0 to 39"),
        (["--at", "0.5,0.5"], "two pixel numbers x,y such as 320,240, got '0.5,0.5'"),
        (["--img-size", "2"], "at least 3 pixels, got '2'"),
        (["--img-size", "8x"], "600x800 for height x width, at least 3 pixels, got '8x'"),
        (["--batch-size", "0"], "must be a whole number of at least 1, got '0'"),
        (["--panels", "0", "--html"], "--html shows the images of the panels, and --panels 0 leaves none"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(
    trained: tuple[nn.Module, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    """Arguments are refused before anything is computed or written."""
    line = ["offsets", "--checkpoint", str(trained[1]), "--images", str(images), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main([*line, *more])
    assert stop.value.code == 2
    assert message.format(images=images) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_without_offsets(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["offsets", "--model", "test_convnext", "--images", str(images), "--out", str(tmp_path / "out")])
    assert "offsets are an ATMNet's: ConvNeXt has none" in capsys.readouterr().err


def test_a_segmenter(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny: dict[str, Any] = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), mlp_ratios=(2, 2, 2, 2))
    model = atmnet.create_segmenter("atmnet_xt", "semantic-fpn", num_classes=2, **tiny)
    arguments = [f"{name}={value}" for name, value in tiny.items()]
    said = dict(model="atmnet_xt", head="semantic-fpn", classes=["road", "sky"], crop_size=64, model_kwargs=arguments)
    atmnet.save(model, tmp_path / "streets.safetensors", **said)
    line = [
        "offsets",
        "--checkpoint",
        str(tmp_path / "streets.safetensors"),
        "--images",
        str(images),
        "--out",
        str(tmp_path / "out"),
        "--html",
    ]
    assert main(line) == 0
    assert "images: 5, resized to 64 x 64; offset layers: layer 1_1, layer 2_1, layer 3_1, layer 4_1" in capsys.readouterr().out
    assert len(list((tmp_path / "out/panels").iterdir())) == 5
    assert "Where the tokens of semantic-fpn on atmnet_xt" in (tmp_path / "out/offsets.html").read_text()


def test_pictures_need_matplotlib(
    monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit):
        main(["offsets", "--model", "atmnet-xt", "--images", str(images), "--out", str(tmp_path)])
    assert "pip install 'atm-triton[pictures]'" in capsys.readouterr().err
