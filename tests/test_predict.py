"""python -m atmnet predict, and opening a classifier from what holds its weights."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import atmnet
import pytest
import timm
import torch
from atmnet.__main__ import main
from atmnet.images import find_images
from atmnet.labels import class_names
from atmnet.predicting import predictor
from atmnet.predicting.many import predict_files
from atmnet.predicting.options import Options
from atmnet.weights.opening import open_classifier
from atmnet_train import imagenet
from atmnet_train.common.errors import RunError
from image_files import write_turned
from official import to_official
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

KWARGS = ["depths=(1,1)", "dims=(8,16)", "mlp_ratios=(2,2)", "share=(2,4)"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def run(small_run, two_classes: Path, tmp_path: Path) -> Path:
    """The output folder of a training with averaged weights."""
    flags = ["--model", "atmnet-xt", "--epochs", "1", "--img-size", "48", "--crop-pct", "1", "--model-ema-decay", "0.5"]
    small_run(two_classes, tmp_path / "run", *flags, "--model-kwargs", *KWARGS)
    return tmp_path / "run"


def test_an_output_folder(run: Path, two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = open_classifier(run)
    assert isinstance(model, atmnet.ATMNet) and not model.training and len(model.stages) == 2
    assert class_names(model) == ["cat", "dog"]
    config = resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"]) == ((3, 48, 48), 1)
    last, averaged = open_classifier(run / "last.pt"), open_classifier(run, ema=True)
    assert torch.equal(last.stem.weight, model.stem.weight) and class_names(last) == ["cat", "dog"]
    assert torch.equal(open_classifier(run / "last.pt", ema=True).stem.weight, averaged.stem.weight)
    assert not torch.equal(averaged.stem.weight, model.stem.weight)

    # Its folder on the Hub says how it came about, but not where its files were.
    model.save_pretrained(tmp_path / "hub")
    card = (tmp_path / "hub/README.md").read_text()
    assert "| images | 10 |" in card and "opt adamw" in card and "| epochs | 1 |" in card
    assert str(tmp_path) not in card + (tmp_path / "hub/config.json").read_text()

    capsys.readouterr()
    for checkpoint in (run, tmp_path / "hub"):
        assert main(["predict", "--checkpoint", str(checkpoint), "--json", "-", str(two_classes / "val")]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [Path(one["image"]).parent.name for one in found] == ["cat"] * 5 + ["dog"] * 5
        with torch.no_grad():
            x = torch.stack([create_transform(**config)(Image.open(one["image"])) for one in found])
            expected = model(x).softmax(1)
        for one, probabilities in zip(found, expected, strict=True):
            assert {guess["name"]: guess["index"] for guess in one["predictions"]} == {"cat": 0, "dog": 1}
            shown = [guess["probability"] for guess in one["predictions"]]
            assert shown == sorted(shown, reverse=True)
            assert shown == pytest.approx(probabilities.sort(descending=True).values.tolist(), rel=1e-4)
            assert one["load_ms"] > 0 and one["network_ms"] > 0


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A classifier of three classes in the Hub's layout."""
    model = timm.create_model("atmnet_xt", num_classes=3, depths=(1, 1), dims=(8, 16), mlp_ratios=(2, 2), share=(2, 4))
    model.pretrained_cfg.update(num_classes=3, input_size=(3, 32, 32), label_names=["ant", "n01440764", "cow"])
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_the_table_and_what_cannot_be_read(saved: Path, two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "clip").write_bytes(b"a video perhaps")
    assert main(["predict", "--checkpoint", str(saved), str(tmp_path / "clip")]) == 1
    assert "it would be taken for a video if its name ended in .mp4" in capsys.readouterr().err
    images = [str(two_classes / "val/cat/*[01].png"), str(tmp_path / "broken.jpg")]
    assert main(["predict", "--checkpoint", str(saved), "--top", "2", "--batch-size", "2", *images]) == 1
    printed, errors = capsys.readouterr()
    assert printed.count("tench, Tinca tinca") + printed.count("ant") + printed.count("cow") == 2 * 2
    assert all(str(two_classes / f"val/cat/{number}.png") in printed for number in (0, 1))  # whole, however long
    assert "2 images · per image" in errors and "skipped: " in errors and "broken.jpg (cannot identify" in errors
    assert main(["predict", "--checkpoint", str(saved), "--json", str(tmp_path / "out.json"), *images]) == 1
    assert [set(one) for one in json.loads((tmp_path / "out.json").read_text())] == [
        {"image", "predictions", "load_ms", "network_ms"},
        {"image", "predictions", "load_ms", "network_ms"},
        {"image", "error"},
    ]


def test_names_with_markup_and_without_meaning(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "300")
    config = json.loads((saved / "config.json").read_text())
    config["pretrained_cfg"] |= {"label_names": ["[/b]", "[bold]ant[/]", "$cow"], "label_descriptions": {}}
    (saved / "config.json").write_text(json.dumps(config))
    folder = tmp_path / "photos["
    folder.mkdir()
    for name in ("red].png", "[bold]x.png", os.fsdecode(b"\xff.png"), "line\nbreak.png"):
        Image.new("RGB", (32, 32)).save(folder / name)
    (folder / "i].txt").touch()
    assert main(["predict", "--checkpoint", str(saved), str(folder)]) == 0
    printed, errors = capsys.readouterr()
    assert "[/red].png" in printed and "[bold]x.png" in printed and r"\udcff.png" in printed
    assert printed.count("[/b]") == printed.count("[bold]ant[/]") == 4 and "passed over: 1 .txt" in errors


def test_batches_do_not_matter(saved: Path, two_classes: Path):
    model, images = open_classifier(saved), find_images([str(two_classes)])[0]
    assert len(images) == 20
    way = predictor(model, Options(top=1))
    singly, together = ([one.result.predictions for one in predict_files(way, images, size)] for size in (1, 32))
    for (one,), (other,) in zip(singly, together, strict=True):
        assert one.index == other.index and one.probability == pytest.approx(other.probability, rel=1e-4)


def test_images_are_seen_upright(saved: Path, tmp_path: Path):
    for orientation in (1, 3, 6):
        write_turned(tmp_path / f"{orientation}.png", orientation)
    model = open_classifier(saved)
    found = predict_files(predictor(model, Options()), find_images([str(tmp_path)])[0])
    first, *others = ([likely.probability for likely in one.result.predictions] for one in found)
    assert all(other == pytest.approx(first, rel=1e-4) for other in others) and len(others) == 2


def test_finding_images(two_classes: Path):
    cats = two_classes / "val/cat"
    (cats / "notes.txt").write_text("no image")
    Image.new("RGB", (8, 8)).save(cats / "10.PNG")
    names = [file.name for file in find_images([str(cats / "3.png"), str(cats)])[0]]
    assert names == ["3.png", "0.png", "1.png", "2.png", "4.png", "10.PNG"]  # each once, in the order people count
    assert len(find_images([str(two_classes / "**/*.png")])[0]) == 20
    with pytest.raises(FileNotFoundError, match=r"there is no image .*nothing\*\.jpg"):
        find_images([str(cats / "nothing*.jpg")])
    (cats / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no image .*empty"):
        find_images([str(cats / "empty")])
    assert len(find_images([str(two_classes / "va*")])[0]) == len(find_images([str(two_classes / "val")])[0]) > 0  # folders, by a pattern


def test_names_of_classes():
    with torch.device("meta"):
        model = timm.create_model("atmnet_xt")
        assert class_names(model)[:2] == ["tench, Tinca tinca", "goldfish, Carassius auratus"]
        model.pretrained_cfg["label_names"] = {"1": "one", "0": "nought"}  # as JSON has them
        model.reset_classifier(2)
        assert class_names(model) == ["nought", "one"]
        model.reset_classifier(3)
        assert class_names(model) == ["class 0", "class 1", "class 2"]


def test_weights_without_a_training(tmp_path: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]):
    model = timm.create_model("atmnet_xt", num_classes=4)
    torch.save({"model": to_official(model)}, tmp_path / "published.pth")
    published = open_classifier(tmp_path / "published.pth", "ATMNet-xT")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in published.state_dict().items())
    assert published.num_classes == 4 and published.training_summary is None
    averaged = {name: value + 1 for name, value in to_official(model).items()}
    args = argparse.Namespace(model="ActivexTiny", lr=1e-3)
    torch.save({"model": to_official(model), "model_ema": averaged, "args": args}, tmp_path / "published.pth")
    for ema, added in ((None, 1), (True, 1), (False, 0)):
        torch.testing.assert_close(open_classifier(tmp_path / "published.pth", ema=ema).norm.bias, model.norm.bias + added)
    predict = ["predict", "--checkpoint", str(tmp_path / "published.pth"), "--json", "-", str(two_classes / "val/cat/0.png")]
    shown = []
    for flags in ([], ["--ema"], ["--no-ema"]):
        assert main([*predict, *flags]) == 0
        shown.append([guess["probability"] for guess in json.loads(capsys.readouterr().out)[0]["predictions"]])
    assert shown[0] == shown[1] != shown[2]
    atmnet.save(timm.create_model("test_convnext", num_classes=4), tmp_path / "named.safetensors", model="test_convnext", img_size=64)
    named = open_classifier(tmp_path / "named.safetensors")
    assert named.num_classes == 4 and resolve_model_data_config(named)["input_size"] == (3, 64, 64)
    with torch.device("meta"):
        assert open_classifier(None, "atmnet-xt").num_classes == 1000


@pytest.mark.parametrize(
    "given,message",
    [
        ({}, "there is no .*nothing; a checkpoint is an output folder"),
        ({"file": "bare.safetensors"}, "bare.safetensors does not say which model it holds: give one, such as atmnet-t"),
        ({"file": "bare.safetensors", "model": "atmnet-q"}, "atmnet_q: timm knows no such model; it knows .*atmnet_b"),
        ({"file": "bare.safetensors", "model": "test_convnext", "ema": True}, "bare.safetensors holds one set of weights"),
        ({"file": "named.safetensors", "model": "atmnet-t"}, "named.safetensors holds test_convnext, not atmnet_t"),
        ({"file": "list.pth", "model": "atmnet-t"}, "list.pth holds a list, not a checkpoint"),
        ({"file": "text.pth", "model": "atmnet-t"}, "text.pth is not a checkpoint that can be read"),
        ({"file": "text.safetensors", "model": "atmnet-t"}, "text.safetensors is not a safetensors file that can be read"),
        ({"file": "weights.pth", "model": "atmnet-t", "ema": True}, "weights.pth has no averaged weights under .*; it has model"),
        ({"file": "saved", "model": "atmnet-t"}, "saved holds atmnet_xt, not atmnet_t"),
        ({"file": "saved", "ema": True}, "saved holds one set of weights"),
    ],
)
def test_checkpoints_that_do_not_serve(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: dict, message: str):
    atmnet.save(timm.create_model("test_convnext"), tmp_path / "bare.safetensors")
    atmnet.save(timm.create_model("test_convnext"), tmp_path / "named.safetensors", model="test_convnext")
    torch.save([1], tmp_path / "list.pth")
    torch.save({"model": {"weight": torch.ones(1)}}, tmp_path / "weights.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights")
    checkpoint = tmp_path / given.get("file", "nothing")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_classifier(checkpoint, given.get("model"), given.get("ema", False))
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    flags = [*(["--model", given["model"]] if "model" in given else []), *(["--ema"] if "ema" in given else [])]
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--checkpoint", str(checkpoint), *flags, str(tmp_path / "image.png")])
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err


def test_what_is_said_of_weights_that_save_wrote(tmp_path: Path):
    model = timm.create_model("atmnet_xt", num_classes=2)
    recipe = dict(mixup=0.0, lr=0.001, ema=False)
    atmnet.save(model, tmp_path / "a.safetensors", model="atmnet-xt", classes=["ant", "bee"], recipe=recipe)
    opened = open_classifier(tmp_path / "a.safetensors")
    assert opened.pretrained_cfg["label_names"] == ["ant", "bee"]
    assert opened.training_summary == {"recipe": dict(mixup=0.0, lr=0.001)}  # no mixup is worth saying


@pytest.mark.parametrize(
    "said",
    [
        *({"input_size": size} for size in ([3, 0, 0], [3, 1, 1], [3, -8, -8], [3, 10**6, 10**6])),
        *({name: value} for name in ("mean", "std") for value in ([float("nan")] * 3, "abc")),
        *({"std": [0, 0, 0]}, {"crop_pct": "x"}, {"crop_pct": -1}, {"interpolation": "x"}),
    ],
    ids=str,
)
def test_images_that_no_model_takes(said: dict, saved: Path, two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = json.loads((saved / "config.json").read_text())
    config["pretrained_cfg"] |= said
    (saved / "config.json").write_text(json.dumps(config))
    for command in (["predict", str(two_classes / "val")], ["export", "--format", "exported-program", "--out", str(tmp_path / "m.pt2")]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, "--checkpoint", str(saved)])
        assert "error: " in capsys.readouterr().err


def test_what_a_network_makes_of_images_is_finite(two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = timm.create_model("test_convnext", num_classes=2).state_dict()
    torch.save({name: value * 1e30 for name, value in state.items()}, tmp_path / "huge.pth")
    given = ["--checkpoint", str(tmp_path / "huge.pth"), "--model", "test_convnext"]
    assert main(["predict", *given, str(two_classes / "val")]) == 1
    assert "what the network makes of it is not finite" in capsys.readouterr().err
    flags = ["--eval", str(tmp_path / "huge.pth"), "--model", "test_convnext", "--img-size", "32", "--num-classes", "2", "--workers", "0"]
    with pytest.raises(RunError, match=r"huge\.pth: what the network makes of the images is not finite"):
        imagenet.main([*flags, "--data-dir", str(two_classes), "--output", str(tmp_path / "out"), "--report-to", "none"])


def test_folders_of_other_libraries(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="config.json does not say which architecture"):
        open_classifier(tmp_path)
    with pytest.raises(ValueError, match="averaged weights are a checkpoint's"):
        open_classifier(None, "atmnet_xt", ema=True)


def test_a_full_disk_and_weights_that_are_not_finite_are_told(
    saved: Path, two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = str(two_classes / "val")
    assert main(["predict", "--checkpoint", str(saved), "--json", "/dev/full", images]) == 1
    assert "cannot write /dev/full" in capsys.readouterr().err
    state = timm.create_model("test_convnext").state_dict()
    torch.save(state | {"stem.0.bias": state["stem.0.bias"] / 0}, tmp_path / "diverged.pth")
    given = ["--checkpoint", str(tmp_path / "diverged.pth"), "--model", "test_convnext"]
    for command in (["predict", images], ["export", "--format", "exported-program", "--out", str(tmp_path / "m.pt2")]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, *given])
        assert "weights that are not finite: stem.0.bias" in " ".join(capsys.readouterr().err.split())
