"""Folders of models of every task: what is opened is what was saved, and is told by its card."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import atmnet
import pytest
import timm
import torch
import yaml
from atmnet.__main__ import main
from atmnet.tasks import about
from PIL import Image
from torch import nn

from atm_triton import swap

TINY: dict[str, Any] = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), mlp_ratios=(1, 1, 1, 1), share=(2, 2, 2, 2))
SEGMENTERS = [("semantic-fpn", "fpn"), ("semantic-fpn", "atmfpn"), ("upernet", None)]
KINDS = ["retinanet", "mask-rcnn", "cascade-mask-rcnn"]
RECIPE = {"lr": 1e-3, "crop_size": 64, "model_kwargs": [f"{name}={value}" for name, value in TINY.items()], "no_aug": False}

pytestmark = pytest.mark.usefixtures("narrow_segmenters")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def segmenter(head: str = "semantic-fpn", neck: str | None = "fpn", classes: int = 3) -> nn.Module:
    return atmnet.create_segmenter("atmnet-xt", head, neck, classes, **TINY).eval()


def detector(kind: str = "mask-rcnn") -> nn.Module:
    model = atmnet.create_detector("atmnet_xt", kind, "atmfpn", 3, min_size=(48, 64), max_size=96, dim=16, **TINY).eval()
    if kind == "retinanet":
        nn.init.zeros_(model.head.classification_head.cls_logits.bias)  # or it would find nothing
    return model


@torch.no_grad()
def found_by(model: nn.Module, side: int = 64) -> list[torch.Tensor]:
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    if about(model).task == "detection":
        (found,) = model([image])
        assert len(found["boxes"])
        return [found[name] for name in sorted(found)]
    return [model(image[None])]


MODELS = {
    "timm": lambda: timm.create_model("test_convnext", num_classes=3).eval(),
    "atmnet": lambda: timm.create_model("atmnet_xt", num_classes=3, **TINY).eval(),
    **{f"{head} {neck}": lambda head=head, neck=neck: segmenter(head, neck) for head, neck in SEGMENTERS},
    **{kind: lambda kind=kind: detector(kind) for kind in KINDS},
    "segmenter of timm's": lambda: atmnet.create_segmenter("test_efficientnet", num_classes=3).eval(),
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_opened_is_what_was_saved(kind: str, tmp_path: Path) -> None:
    model: Any = MODELS[kind]()
    model.about = about(model)
    model.about.metrics = {"images": 7.0}
    model.training_summary = {"epochs": 3, "recipe": {"lr": 0.1}}
    atmnet.save_pretrained(model, tmp_path / "one")
    again: Any = atmnet.open_model(tmp_path / "one")
    assert not again.training and about(again) == about(model) and again.training_summary == model.training_summary
    for expected, value in zip(found_by(model), found_by(again), strict=True):
        assert torch.equal(expected, value)
    atmnet.save_pretrained(again, tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two"))
    assert one | {"pretrained_cfg": None} == two | {"pretrained_cfg": None}  # which of some timm's tell other numbers of classes
    assert (tmp_path / "one/README.md").read_bytes() == (tmp_path / "two/README.md").read_bytes()
    opened = {"classification": atmnet.open_classifier, "segmentation": atmnet.open_segmenter, "detection": atmnet.open_detector}
    opened.pop(about(model).task)(tmp_path / "one")
    for other in opened.values():
        with pytest.raises(ValueError, match="not a"):
            other(tmp_path / "one")


def write_run(folder: Path, averaged: bool = False, **said: object) -> Path:
    """An output folder of train/ade20k.py."""
    kind = dict(model="atmnet_xt", head="semantic-fpn", neck="fpn", num_classes=3, classes=["road", "a|b", "sky"])
    name = "best_ema.safetensors" if averaged else "best.safetensors"
    atmnet.save(segmenter(), folder / name, **kind, recipe=RECIPE, mIoU=41.25, images=7, **said)
    (folder / "summary.json").write_text(json.dumps({"epochs": 2, "args": {"data_dir": "/home/me"}, "device": "a CPU"}))
    (folder / "pictures").mkdir(exist_ok=True)
    for number, colour in enumerate(("red", "lime", "blue", "white")):
        Image.new("RGB", (1500, 300), colour).save(folder / "pictures" / f"{number}.png")
    Image.new("RGBA", (60, 30), "gray").save(folder / "curves.png")
    return folder


def test_a_run_becomes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    assert main(["convert", str(run), str(out), "--license", "cc-by-4.0"]) == 0
    assert f'atmnet.open_model("{out}")' in capsys.readouterr().out
    model, again = atmnet.open_model(run), atmnet.open_model(out)
    assert about(model) == about(again) and about(again).classes == ["road", "a|b", "sky"] and about(again).size == (64,)
    assert about(again).metrics == {"mIoU": 41.25, "images": 7.0}
    assert again.training_summary == {"epochs": 2, "device": "a CPU", "recipe": {name: RECIPE[name] for name in list(RECIPE)[:3]}}
    assert torch.equal(found_by(model)[0], found_by(again)[0])
    shown = [Image.open(out / "pictures" / f"{number}.jpg") for number in range(4)]
    assert [(image.size, image.format) for image in shown] == [((1000, 200), "JPEG")] * 3 + [((60, 30), "JPEG")]
    assert shown[1].getpixel((5, 5))[1] > 250 and about(again).pictures == [out / "pictures" / f"{number}.jpg" for number in range(4)]
    card = (out / "README.md").read_text()
    for said in (
        'atmnet.open_model("hf-hub:USER/NAME")',
        "| backbone | atmnet_xt |",
        r"| classes | 3: road, a\|b, sky |",
        "| mIoU | 41.25 |",
        "| recipe | lr 0.001, crop_size 64, model_kwargs depths=(1, 1, 1, 1)",
        "![](pictures/3.jpg)",
        "`cc-by-4.0`",
    ):
        assert said in card
    assert "/home/me" not in card + (out / "config.json").read_text()
    data = yaml.safe_load(card.split("---\n")[1])
    assert (data["pipeline_tag"], data["license"]) == ("image-segmentation", "cc-by-4.0")
    (result,) = data["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"mIoU": 41.25}


def test_pictures_follow_and_go(tmp_path: Path) -> None:
    model: Any = atmnet.open_model(write_run(tmp_path / "run"))
    atmnet.save_pretrained(model, tmp_path / "out")
    again: Any = atmnet.open_model(tmp_path / "out")
    (tmp_path / "out/README.md").write_text("My own words")
    again.about.pictures = again.about.pictures[1:2]
    atmnet.save_pretrained(again, tmp_path / "out")  # into where they are
    assert [path.name for path in (tmp_path / "out/pictures").iterdir()] == ["0.jpg"]
    assert Image.open(tmp_path / "out/pictures/0.jpg").getpixel((5, 5))[1] > 250
    assert (tmp_path / "out/README.md").read_text() == "My own words"
    write_run(tmp_path / "run", averaged=True)
    averaged = about(atmnet.open_model(tmp_path / "run", ema=True))
    assert [path.name for path in averaged.pictures] == ["curves.png"]  # the others show what the weights beside them find


def test_detectors_say_their_sizes_and_ids(tmp_path: Path) -> None:
    model: Any = detector()
    model.about = about(model)
    model.about.category_ids, model.about.classes = [1, 5, 90], ["cat", "dog", "cow"]
    model.transform.image_mean = [0.1, 0.2, 0.3]
    model.about.mean = (0.1, 0.2, 0.3)
    atmnet.save_pretrained(model, tmp_path)
    again: Any = atmnet.open_detector(tmp_path)
    assert about(again) == about(model) and about(again).size == (64, 96)
    assert again.transform.min_size == model.transform.min_size and tuple(again.transform.image_mean) == (0.1, 0.2, 0.3)
    data = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert data["pipeline_tag"] == "object-detection" and "image-segmentation" in data["tags"]
    assert "arxiv:2203.06108" in data["tags"] and data["license"] == "mit"


def test_pushing_sends_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            sent["token"] = token

        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> SimpleNamespace:
            sent.update(private=private, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id: str, folder_path: str, **kwargs: object) -> str:
            files = [path for path in Path(folder_path).rglob("*") if path.is_file()]
            sent.update(kwargs, to=repo_id, files={str(path.relative_to(folder_path)): path.read_bytes() for path in files})
            return "https://huggingface.co/me/streets/commit/1"

    monkeypatch.setattr("atmnet.weights.sharing.HfApi", Api)
    model = atmnet.open_model(write_run(tmp_path / "run"))
    assert atmnet.push_to_hub(model, "me/streets", private=True, token="secret", revision="v1").endswith("commit/1")
    files = sent.pop("files")
    assert sent == dict(token="secret", private=True, exist_ok=True, to="me/streets", revision="v1", commit_message="Add the model")
    pictures = [f"pictures/{number}.jpg" for number in range(4)]
    assert sorted(files) == sorted(["README.md", "config.json", "model.safetensors", *pictures])
    assert b'atmnet.open_model("hf-hub:me/streets")' in files["README.md"] and b"# streets" in files["README.md"]


def test_the_hub_holds_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download itself is huggingface_hub's."""
    asked: list[tuple[str, str | None]] = []

    def snapshot(name: str, allow_patterns: list[str], revision: str | None = None) -> str:
        assert set(allow_patterns) == {"config.json", "model.safetensors"}
        asked.append((name, revision))
        if name == "me/none":
            raise OSError("there is no me/none")
        return str(tmp_path / name)

    monkeypatch.setattr("atmnet.weights.places.snapshot_download", snapshot)
    for kind in ("timm", "semantic-fpn fpn", "mask-rcnn"):
        model = MODELS[kind]()
        atmnet.save_pretrained(model, tmp_path / "me" / kind)
        again = atmnet.open_model(f"hf-hub:me/{kind}@v2")
        assert asked[-1] == (f"me/{kind}", "v2") and torch.equal(found_by(model)[0], found_by(again)[0])
        weights = tmp_path / "me" / kind / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-3] ^= 4
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            atmnet.open_model(f"hf-hub:me/{kind}")
    with pytest.raises(ValueError, match="hf-hub:me/none cannot be opened: OSError: there is no me/none"):
        atmnet.open_model("hf-hub:me/none")
    (tmp_path / "me/empty").mkdir()
    with pytest.raises(ValueError, match=r"hf-hub:me/empty has no config\.json"):
        atmnet.open_model("hf-hub:me/empty")


def test_the_hubs_files_of_timms_own_kind_are_timms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repositories without a safetensors of the usual name."""
    (tmp_path / "config.json").write_text('{"architecture": "test_convnext", "num_classes": 3}')
    monkeypatch.setattr("atmnet.weights.places.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(ValueError, match="hf-hub:me/old cannot be opened") as error:
        monkeypatch.setattr("atmnet.weights.places.timm.create_model", lambda place, **_: 1 / 0)
        atmnet.open_model("hf-hub:me/old")
    assert "ZeroDivisionError" in str(error.value)


def test_what_could_not_be_made_again_is_not_saved(tmp_path: Path) -> None:
    foreign = segmenter()
    foreign.decode_head.conv_seg = nn.Conv2d(32, 5, 3)  # type: ignore[union-attr]
    inside: Any = timm.create_model("test_resnet", num_classes=3)
    swap(inside.layer1, "*.conv2")
    converted: Any = timm.create_model("test_resnet", num_classes=3)
    swap(converted, "layer1.0.conv2", converters={nn.Conv2d: lambda _: nn.Linear(2, 2)})
    unwritten = atmnet.create_segmenter("test_efficientnet", num_classes=3, act_layer=nn.GELU)
    for model, message in (
        (foreign, r"out: the model could not be opened again: .*does not fit this Segmenter"),
        (inside, "holds mixers where the model has other layers"),
        (converted, "cannot swap its ResNet as told"),
        (unwritten, "act_layer of timm's model cannot be written down"),
        (nn.Linear(2, 2), "cannot tell what a Linear predicts"),
    ):
        with pytest.raises(ValueError, match=message):
            atmnet.save_pretrained(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()
