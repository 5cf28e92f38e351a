"""Swapped models: opened by the report of their swap, or by a checkpoint that says it."""

from __future__ import annotations

import json
from pathlib import Path

import atmnet
import pytest
import timm
import torch
from atmnet.__main__ import main
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from atm_triton import Report, swap, unswap
from atm_triton.swapping.swap import reports_of

IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SAYS_WHAT_TO_GIVE = r"holds mixers where the model has other layers \(.*give the report of their swap to atmnet.open_model as swap="

MODELS = {"test_resnet": "*.conv2", "test_convnext": "*.conv_dw", "test_vit": "*.attn"}  # dense, grouped, attention


def swapped(name: str = "test_resnet", **options: int) -> tuple[nn.Module, Report]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    return model, swap(model, MODELS[name], **options)


@torch.no_grad()
def same(model: nn.Module, other: nn.Module) -> bool:
    side = model.pretrained_cfg["input_size"][-1] if "vit" in model.pretrained_cfg["architecture"] else 64  # type: ignore[index]
    images = nn.functional.interpolate(IMAGES, (side, side))
    return torch.equal(model(images), other(images))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("name", MODELS)
def test_plain_weights_and_a_report(name: str, ending: str, tmp_path: Path) -> None:
    model, report = swapped(name)
    report.save(tmp_path / "swap.json")
    weights = tmp_path / f"weights.{ending}"
    (torch.save if ending == "pth" else save_file)(model.state_dict(), weights)
    for given in (report, tmp_path / "swap.json", str(tmp_path / "swap.json")):
        assert same(model, atmnet.open_model(weights, name, swap=given))
    with pytest.raises(ValueError, match=SAYS_WHAT_TO_GIVE) as error:
        atmnet.open_model(weights, name)
    assert str(weights) in str(error.value)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_says_how_it_was_swapped(name: str, tmp_path: Path) -> None:
    model, report = swapped(name)
    atmnet.save_pretrained(model, tmp_path / "one")
    again = atmnet.open_model(tmp_path / "one")
    assert same(model, again) and reports_of(again)[0].changed == report.changed
    assert Report.from_json(json.loads((tmp_path / "one/config.json").read_text())["swap"][0]) == report
    card = (tmp_path / "one/README.md").read_text()
    assert "timm.create_model" not in card and f"{report.changed[0].name}: {report.changed[0].was} -> {report.changed[0].now}" in card
    atmnet.save_pretrained(again, tmp_path / "two")
    assert same(model, atmnet.open_model(tmp_path / "two"))
    unswap(again)
    atmnet.save_pretrained(again, tmp_path / "three")
    assert "swap" not in json.loads((tmp_path / "three/config.json").read_text())
    with pytest.raises(ValueError, match="says itself how its model was swapped"):
        atmnet.open_model(tmp_path / "one", swap=report)


def test_several_swaps_and_another_classifier(tmp_path: Path) -> None:
    model, _ = swapped(share=2)
    swap(model, "layer1.*.conv1")
    model.reset_classifier(5)  # type: ignore[operator]
    atmnet.save_pretrained(model, tmp_path / "folder")
    atmnet.save(model, tmp_path / "weights.safetensors", model="test_resnet")
    for place in (tmp_path / "folder", tmp_path / "weights.safetensors"):
        again = atmnet.open_classifier(place)
        assert same(model, again) and len(reports_of(again)) == 2


def test_an_atmnet_and_a_segmenter_with_other_layers_swapped(tmp_path: Path) -> None:
    tiny = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), mlp_ratios=(1, 1, 1, 1), share=(2, 2, 2, 2))
    atmnet_ = timm.create_model("atmnet_xt", num_classes=3, **tiny).eval()
    swap(atmnet_, "stages.0.peg")
    segmenter = atmnet.create_segmenter("test_resnet", num_classes=3).eval()
    swap(segmenter, "backbone.*.conv2")
    for model in (atmnet_, segmenter):
        atmnet.save_pretrained(model, tmp_path / type(model).__name__)
        with torch.no_grad():
            assert torch.equal(atmnet.open_model(tmp_path / type(model).__name__)(IMAGES), model(IMAGES))
    again = atmnet.ATMNet.from_pretrained(tmp_path / "ATMNet")
    assert same(atmnet_, again)


def test_a_folder_of_timms_that_does_not_say(tmp_path: Path) -> None:
    model, report = swapped()
    save_for_hf(model, tmp_path, safe_serialization=True)
    with pytest.raises(ValueError, match=SAYS_WHAT_TO_GIVE):
        atmnet.open_model(tmp_path)
    assert same(model, atmnet.open_model(tmp_path, swap=report))


def test_reports_of_other_models_are_refused(tmp_path: Path) -> None:
    model, report = swapped()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    _, other = swapped("test_convnext")
    with pytest.raises(ValueError, match=r"weights\.pth: cannot swap its ResNet as told: .*has no stages"):
        atmnet.open_model(tmp_path / "weights.pth", "test_resnet", swap=other)
    with pytest.raises(FileNotFoundError):
        atmnet.open_model(tmp_path / "weights.pth", "test_resnet", swap=tmp_path / "none.json")
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(ValueError, match=r"odd\.json is no report of swap"):
        atmnet.open_model(tmp_path / "weights.pth", "test_resnet", swap=tmp_path / "odd.json")
    with pytest.raises(ValueError, match="unswap"):
        atmnet.open_model(tmp_path / "weights.pth", "test_resnet", swap=unswap(model))
    assert reports_of(atmnet.open_model(None, "test_resnet", swap=report))[0].changed == report.changed


def test_what_a_failed_report_did_is_forgotten() -> None:
    _, report = swapped()
    model = timm.create_model("test_resnet", num_classes=3)
    model.layer1[0].conv2.stride = (2, 2)
    with pytest.raises(ValueError, match="cannot be swapped as the report says"):
        report.apply(model)
    assert reports_of(model) == ()


def test_the_commands_take_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, report = swapped()
    report.save(tmp_path / "swap.json")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "noise.png")
    line = ["--checkpoint", str(tmp_path / "weights.pth"), "--model", "test_resnet"]
    assert main(["predict", str(tmp_path / "noise.png"), *line, "--swap", str(tmp_path / "swap.json"), "--json", "-"]) == 0
    expected = atmnet.predict(model, tmp_path / "noise.png").to_dict()["predictions"]
    assert json.loads(capsys.readouterr().out)[0]["predictions"] == expected
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "noise.png"), *line])
    assert "--swap" in capsys.readouterr().err
    line = ["convert", str(tmp_path / "weights.pth"), str(tmp_path / "out"), "--model", "test_resnet"]
    assert main([*line, "--swap", str(tmp_path / "swap.json")]) == 0
    assert "atmnet.open_model" in capsys.readouterr().out and same(model, atmnet.open_model(tmp_path / "out"))
