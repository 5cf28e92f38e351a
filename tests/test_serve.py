"""The page of python -m atmnet serve, and its server, which gets files of all kinds."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atmnet
import numpy as np
import pytest
import timm
import torch
from atmnet.__main__ import main
from atmnet.images import ImageError
from atmnet.offsets.images import size_in_proportion
from atmnet.predicting.classes import Classes, Guess
from atmnet.predicting.options import Options
from atmnet.serving.showing import Showing, probabilities
from atmnet.tasks import about_detector, about_segmenter
from image_files import write_turned
from PIL import Image
from torch import nn

pytest.importorskip("gradio")
LARGEST = 32 * 2**20  # bytes of a file

TINY: dict[str, Any] = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), mlp_ratios=(2, 2, 2, 2), share=(2, 4, 4, 4))
LAYERS = 4


def classifier(**options: Any) -> Any:
    model = timm.create_model("atmnet_xt", num_classes=3, **TINY | options).eval()
    model.pretrained_cfg.update(num_classes=3, input_size=(3, 32, 32), label_names=["ant", "<b>bee</b>", "cow"])
    return model


def segmenter(**options: Any) -> Any:
    model: Any = atmnet.create_segmenter("atmnet_xt", "semantic-fpn", num_classes=2, **TINY | options).eval()
    model.about = about_segmenter(model, ["road", "sky"], 64)
    return model


def detector(**options: Any) -> Any:
    model: Any = atmnet.create_detector("atmnet_xt", "mask-rcnn", num_classes=2, min_size=64, max_size=96, dim=16, **TINY | options).eval()
    model.about = about_detector(model, ["road", "sky"])
    return model


MODELS = {"classification": classifier, "segmentation": segmenter, "detection": detector}


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.mark.parametrize("task", MODELS)
def test_what_is_shown(task: str, photo: str) -> None:
    showing = Showing(MODELS[task]())
    assert showing.described.task == task and not showing.no_offsets
    found = showing.find(photo, Options(threshold=0 if task == "detection" else None))
    expected = atmnet.predict(showing.model, photo, threshold=0 if task == "detection" else None)
    assert found.to_dict() == expected.to_dict() and found.rows()
    middle, corner = showing.look(photo), showing.look(photo, (59, 0))
    assert middle.size == corner.size and np.abs(np.asarray(middle).astype(int) - np.asarray(corner)).max() > 50
    assert np.array_equal(np.asarray(middle), np.asarray(showing.look(photo, (30, 20))))


def test_a_photo_is_looked_at_in_its_proportions() -> None:
    wide, tall, strip = (Image.new("RGB", size) for size in ((60, 40), (40, 60), (500, 2)))
    assert [size_in_proportion(classifier(), image) for image in (wide, tall, strip)] == [(32, 48), (48, 32), (32, 128)]
    assert [size_in_proportion(segmenter(), image) for image in (wide, tall, strip)] == [(64, 96), (96, 64), (64, 256)]
    assert [size_in_proportion(detector(), image) for image in (wide, tall, strip)] == [(64, 96), (96, 64), (24, 96)]


def test_another_photo_is_looked_at_anew(photo: str, tmp_path: Path) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "other.png")
    showing = Showing(classifier())
    first = showing.look(photo)
    assert showing.look(str(tmp_path / "other.png")).size != first.size


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: timm.create_model("test_convnext", num_classes=2).eval(), "ConvNeXt has none"),
        (lambda: classifier(offsets="zero"), "predicts none"),
    ],
)
def test_models_that_look_nowhere(model: Any, why: str, photo: str) -> None:
    from atmnet.serving.page import build

    showing = Showing(model())
    assert why in showing.no_offsets and showing.find(photo, Options()).rows()
    shown = [block.value for block in build(showing).blocks.values() if type(block).__name__ == "HTML"]
    assert any(why in text for text in shown)


def test_what_cannot_be_shown(photo: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a classifier of videos, and the page shows photos"):
        Showing(timm.create_model("atmnet_xt_video", **TINY).eval())
    with pytest.raises(ValueError, match="cannot tell what a Linear predicts"):
        Showing(nn.Linear(1, 1))
    showing = Showing(classifier())
    Image.new("L", (8000, 7000)).save(tmp_path / "large.png")
    for ask in (lambda file: showing.find(file, Options()), showing.look):
        with pytest.raises(ImageError, match="8000 x 7000 pixels: more than 50,000,000 in all"):
            ask(str(tmp_path / "large.png"))
    showing.model.head.fc.weight.data[:] = torch.nan
    with pytest.raises(ImageError, match="in the network: what the network makes of it is not finite"):
        showing.find(photo, Options())


def test_names_that_classes_share() -> None:
    found = Classes(Image.new("RGB", (1, 1)), [Guess(134, "crane", 0.5), Guess(517, "crane", 0.3), Guess(0, "tench", 0.1)])
    assert probabilities(found) == {"crane (134)": 0.5, "crane (517)": 0.3, "tench": 0.1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier in the Hub's layout."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    classifier().save_pretrained(folder)
    return folder


class Server:
    """The command in a process of its own."""

    def __init__(self, checkpoint: Path, temporary: Path) -> None:
        command = [sys.executable, "-m", "atmnet", "serve", "--checkpoint", str(checkpoint), "--port", "0", "--device", "cpu"]
        self.temporary = temporary
        environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + self.process.stdout.read()
        self.url = found[0]

    def end(self, by: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(by)
        printed, _ = self.process.communicate(timeout=30)
        return self.process.returncode, printed


@pytest.fixture(scope="module")
def server(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    serving = Server(saved, tmp_path_factory.mktemp("temporary"))
    yield serving
    if serving.process.poll() is None:
        serving.process.kill()


def ask(server: Server, call: str, *given: Any) -> str:
    """What the server answers to a call, as it sends it."""
    request = urllib.request.Request(f"{server.url}/gradio_api/call/{call}", json.dumps({"data": given}).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{server.url}/gradio_api/call/{call}/{event}") as answer:
        return str(answer.read().decode())


def upload(server: Server, name: str, content: bytes) -> dict[str, Any]:
    """A file on the server, as calls take it."""
    form = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n--x--\r\n"
    request = urllib.request.Request(f"{server.url}/gradio_api/upload", form, {"Content-Type": "multipart/form-data; boundary=x"})
    with urllib.request.urlopen(request) as answer:
        return {"path": json.load(answer)[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def write_refused(folder: Path) -> dict[str, str]:
    """Files, and what is said of them."""
    Image.effect_noise((200, 100), 90).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:2000])
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("<svg onload=alert(1)>")
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    Image.new("L", (1, 65500)).save(folder / "long.png")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    return {
        "cut.jpg": "truncated",
        "empty.jpg": "cannot identify image file &#x27;empty.jpg&#x27;",
        "text.png": "cannot identify image file &#x27;text.png&#x27;",
        "drawing.svg": "cannot identify",
        "long.png": "more than 250 times as long as it is wide",
        "bomb.png": "decompression bomb",
    }


def write_odd(folder: Path) -> list[str]:
    """Files that are shown like any other."""
    frames = [Image.new("P", (30, 20), colour) for colour in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((20, 30), 40000, np.uint16)).save(folder / "deep.png")
    Image.new("CMYK", (30, 20), (9, 99, 9, 9)).save(folder / "cmyk.jpg")
    write_turned(folder / "turned.jpg", 6)
    Image.new("RGBA", (30, 20), (9, 99, 9, 9)).save(folder / "clear.webp")
    return ["moving.gif", "deep.png", "cmyk.jpg", "turned.jpg", "clear.webp"]


def test_the_server_survives_what_it_gets(server: Server, saved: Path, tmp_path: Path) -> None:
    for name, says in write_refused(tmp_path).items():
        for call, setting in (("find", [2]), ("look", [])):
            answer = ask(server, call, upload(server, name, (tmp_path / name).read_bytes()), *setting)
            assert answer.startswith("event: error") and says in answer, (name, answer)
            assert str(server.temporary) not in answer
    model = atmnet.open_model(saved)
    for name in write_odd(tmp_path):
        expected = probabilities(atmnet.predict(model, tmp_path / name, top=2))
        sent = upload(server, name, (tmp_path / name).read_bytes())
        (found,) = json.loads(ask(server, "find", sent, 2).partition("data: ")[2])
        assert {one["label"]: one["confidence"] for one in found["confidences"]} == pytest.approx(expected, rel=1e-3), name
        assert ask(server, "look", sent).startswith("event: complete"), name


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_what_the_server_keeps_to_itself(server: Server, saved: Path, tmp_path: Path) -> None:
    for file in ("/etc/passwd", str(saved / "config.json"), str(Path(atmnet.__file__)), "../../../../etc/passwd"):
        assert status(f"{server.url}/gradio_api/file={file}") in (403, 404), file
    secret = tmp_path / "secret.png"
    Image.new("RGB", (30, 20)).save(secret)
    photo, given = upload(server, "photo.png", secret.read_bytes()), {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    for call in ([given, 2], [photo, given], [given | {"path": "http://127.0.0.1:9/secret.png"}, 2], [photo, 30]):
        assert ask(server, "find", *call).startswith("event: error"), call
    assert ask(server, "find", photo, 2).startswith("event: complete") and not list(server.temporary.rglob("secret.png"))
    name = server.url.removeprefix("http://")
    assert status(server.url, Host=name) == 200 and status(server.url, Host="elsewhere.example") == 400  # of a page that renames itself
    with pytest.raises(urllib.error.URLError):  # that it is too large, or only that nobody listens to the rest of it
        upload(server, "large.png", bytes(40 * 2**20))
    assert not [file for file in server.temporary.rglob("*") if file.is_file() and file.stat().st_size > LARGEST]


def test_a_port_in_use_is_told_of(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match="2"):
            main(["serve", "--checkpoint", str(saved), "--port", str(port)])
    told = capsys.readouterr().err
    assert f"cannot listen at --host 127.0.0.1 --port {port}: Address already in use" in told and "give another --port" in told


def test_gradio_is_named_where_it_is_missing(saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("page", "server"):
        monkeypatch.delitem(sys.modules, f"atmnet.serving.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--checkpoint", str(saved)])
    assert "pip install 'atm-triton[serve]'" in capsys.readouterr().err


def test_it_ends_without_leaving_anything(server: Server, photo: str) -> None:
    """The last to use the server."""
    assert ask(server, "find", upload(server, "photo.png", Path(photo).read_bytes()), 2).startswith("event: complete")
    assert list(server.temporary.rglob("photo.png"))
    status, printed = server.end()
    assert status == 0 and "KeyboardInterrupt" not in printed and "CancelledError" not in printed
    assert not [file for file in server.temporary.rglob("*") if file.is_file()]
