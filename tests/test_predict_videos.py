"""Videos in use: what a model finds on their frames, in tables, results and annotated videos."""

from __future__ import annotations

import csv
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import atmnet
import av
import numpy as np
import pytest
import timm
import torch
from atmnet.__main__ import main
from atmnet.predicting.classes import Classifier
from atmnet.videos import VideoError, open_video
from faster_coco_eval import COCO
from PIL import Image
from video_files import greys, write_video

TINY = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    model = timm.create_model("atmnet_xt", num_classes=3, depths=(1, 1), dims=(8, 16), mlp_ratios=(2, 2), share=(2, 4))
    model.pretrained_cfg.update(num_classes=3, input_size=(3, 32, 32), label_names=["ant", "bee", "a cow of a name that is too long"])
    model.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.fixture
def segmenter(tmp_path: Path) -> Path:
    model = atmnet.create_segmenter("atmnet_xt", "semantic-fpn", num_classes=2, **TINY)
    said = dict(model="atmnet_xt", head="semantic-fpn", classes=["road", "sky"], crop_size=64)
    atmnet.save(model, tmp_path / "s.safetensors", **said, model_kwargs=[f"{name}={value}" for name, value in TINY.items()])
    return tmp_path / "s.safetensors"


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    model = atmnet.create_detector("atmnet_xt", "mask-rcnn", num_classes=2, min_size=64, max_size=96, dim=16, **TINY)
    said = dict(model="atmnet_xt", detector="mask-rcnn", num_classes=2, min_size=[64], max_size=96)
    atmnet.save(model, tmp_path / "d.safetensors", **said, model_kwargs=[f"{name}={value}" for name, value in TINY.items()])
    return tmp_path / "d.safetensors"


def noise(number: int) -> list[Image.Image]:
    return [Image.effect_noise((70, 50), 90).convert("RGB") for _ in range(number)]


def seen(path: Path) -> list[tuple[float, Image.Image]]:
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    return [(frame.time, frame.image) for frame in open_video(path).frames()]


def test_classes_of_frames_are_those_of_images(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, times = tmp_path / "photos", [0, 0.1, 0.15, 0.9, 1.0]
    photos.mkdir()
    images = noise(5)
    images[0].save(photos / "clip.png")
    write_video(photos / "clip.mp4", images, times)
    (photos / "notes.txt").touch()
    line = ["predict", "--checkpoint", str(classifier), str(photos), "--batch-size", "4"]
    assert main([*line, "--json", "-", "--csv", str(tmp_path / "table.csv"), "--out", str(tmp_path / "out")]) == 0
    printed, errors = capsys.readouterr()
    found = json.loads(printed)
    assert [(Path(one["image"]).name, one.get("frame")) for one in found] == [*(("clip.mp4", n) for n in range(5)), ("clip.png", None)]
    assert [one["time"] for one in found[:5]] == pytest.approx(times, abs=1e-3)
    assert "passed over: 1 .txt" in errors and "6 pictures · per picture" in errors
    model, shown = atmnet.open_model(classifier), [frame.image for frame in open_video(photos / "clip.mp4").frames()]
    for one, image in zip(found, shown, strict=False):
        expected = atmnet.predict(model, image).predictions
        assert [guess["index"] for guess in one["predictions"]] == [guess.index for guess in expected]
        assert one["predictions"][0]["probability"] == pytest.approx(expected[0].probability, rel=1e-4)
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows[::3]] == ["0", "1", "2", "3", "4", ""] and float(rows[9]["time"]) == pytest.approx(0.9, abs=1e-3)

    assert [path.name for path in (tmp_path / "out/pictures").iterdir()] == ["clip.mp4.mp4"]
    drawn = seen(tmp_path / "out/pictures/clip.mp4.mp4")
    assert [time for time, _ in drawn] == pytest.approx(times, abs=1e-3)
    for (_, picture), image in zip(drawn, shown, strict=True):
        assert picture.width == 6 * 70 and picture.height > 6 * 50
        there = picture.crop((0, 0, 6 * 70, 6 * 50)).resize((70, 50), Image.Resampling.BOX)
        assert np.abs(np.asarray(there).astype(int) - np.asarray(image)).mean() < 6
        strip = np.asarray(picture.crop((0, 6 * 50, 6 * 70, picture.height)))
        assert (strip > 240).mean() > 0.6 and (strip < 90).mean() > 0.02  # letters on white

    videos = dict(enumerate(atmnet.predict_video(model, photos / "clip.mp4", every=2, top=1)))
    assert [time for time, _ in videos.values()] == pytest.approx(times[::2], abs=1e-3)
    assert [result.predictions[0].index for _, result in videos.values()] == [one["predictions"][0]["index"] for one in found[:5:2]]


def test_labels_and_overlays_of_frames(segmenter: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mov", noise(7))
    line = ["predict", "--checkpoint", str(segmenter), str(clip), "--out", str(tmp_path / "out"), "--every", "3"]
    assert main(line) == 0
    labels = sorted((tmp_path / "out/labels/clip.mp4").iterdir())
    assert [path.name for path in labels] == ["000000.png", "000003.png", "000006.png"]
    drawn = seen(tmp_path / "out/pictures/clip.mp4")
    assert [time for time, _ in drawn] == pytest.approx([0, 0.3, 0.6], abs=1e-3)
    model = atmnet.open_model(segmenter)
    for path, (_, picture), frame in zip(labels, drawn, open_video(clip).frames(every=3), strict=True):
        expected = atmnet.predict(model, frame.image)
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), expected.labels.numpy())
        overlay = expected.picture()[0]
        difference = np.asarray(picture.crop((0, 0, *overlay.size))).astype(int) - np.asarray(overlay)
        assert np.abs(difference).mean() < 12  # colours have half the resolution


def test_objects_of_frames(detector: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", noise(3))
    assert main(["predict", "--checkpoint", str(detector), str(clip), "--out", str(tmp_path / "out"), "--threshold", "0"]) == 0
    loaded = COCO(str(tmp_path / "out/images.json")).loadRes(str(tmp_path / "out/detections.json"))
    images = [(image["frame"], image["file_name"], image["width"]) for image in loaded.dataset["images"]]
    assert images == [(n, str(clip), 70) for n in range(3)]
    assert {row["image_id"] for row in loaded.dataset["annotations"]} == {1, 2, 3}
    first = seen(tmp_path / "out/pictures/clip.mp4")[0][1]
    assert first.size == (6 * 70, 6 * 50) and np.ptp(np.asarray(first).astype(int), axis=2).max() > 100  # boxes on grey noise


def test_a_damaged_video_is_told_and_the_rest_is_done(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "1.mp4").write_text("no video")
    whole = write_video(tmp_path / "2.mp4", noise(40), g="5")
    (clips / "2.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write_video(clips / "3.avi", noise(3), bf="0")
    line = ["predict", "--checkpoint", str(classifier), str(clips), "--out", str(tmp_path / "out")]
    assert main(line) == 1
    errors = capsys.readouterr().err
    assert "1.mp4 (FFmpeg says: Invalid data" in errors and "2.mp4 (after " in errors and "frames/s" in errors
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    assert "error" in found[0] and sum("3.avi" in one["image"] for one in found) == 3
    until = sum("2.mp4" in one["image"] for one in found) - 1
    assert len(seen(tmp_path / "out/pictures/2.mp4")) == until > 5 and len(seen(tmp_path / "out/pictures/3.mp4")) == 3
    model = atmnet.open_model(classifier)
    with pytest.raises(VideoError, match="Invalid data"):
        atmnet.predict_video(model, clips / "1.mp4")
    frames = atmnet.predict_video(model, clips / "2.mp4")
    assert len(list(islice(frames, until))) == until
    with pytest.raises(VideoError, match=f"after {until} frames"):
        next(frames)
    with pytest.raises(ValueError, match="every 0: it must be at least 1"):
        atmnet.predict_video(model, whole, every=0)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), None])
def test_what_stops_it_leaves_no_half_video(
    stop: BaseException | None, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, out = write_video(tmp_path / "clip.mp4", greys(9)), tmp_path / "out"
    find, calls = Classifier.find, []

    def stopping(self: Classifier, loaded: list[Any]) -> list[Any]:
        calls.append(None)
        if len(calls) > 4 and stop is not None:
            raise stop
        return find(self, loaded)

    monkeypatch.setattr(Classifier, "find", stopping)
    if stop is None:
        (out / "pictures/clip.mp4/full").mkdir(parents=True)  # nothing can be put there
    line = ["predict", "--checkpoint", str(classifier), str(clip), "--out", str(out), "--batch-size", "1"]
    assert main(line) == (1 if stop is None else 130)
    assert [path.name for path in (out / "pictures").iterdir()] == ["clip.mp4"]
    if stop is None:
        assert f"cannot write {out / 'pictures/clip.mp4'}" in capsys.readouterr().err
    else:
        assert len(seen(out / "pictures/clip.mp4")) == len(json.loads((out / "predictions.json").read_text())) == 4
        assert "stopped: what was found so far is written" in capsys.readouterr().err


def test_without_pyav(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (32, 32)).save(photos / "a.png")
    write_video(photos / "b.mp4", greys(2))
    monkeypatch.setitem(sys.modules, "av", None)
    line = ["predict", "--checkpoint", str(classifier), "--json", "-"]
    assert main([*line, str(photos)]) == 0
    printed, errors = capsys.readouterr()
    assert len(json.loads(printed)) == 1
    assert "passed over: 1 video (videos need PyAV: pip install 'atm-triton[video]')" in errors
    for places in ([photos / "b.mp4", photos / "a.png"], [photos / "b.*"]):
        with pytest.raises(SystemExit, match="2"):
            main([*line, *map(str, places)])
        assert "error: videos need PyAV: pip install 'atm-triton[video]'" in capsys.readouterr().err


def test_what_is_looked_at_is_not_written_over(segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    clip = write_video(tmp_path / "pictures/clip.mp4", greys(2))
    before = clip.read_bytes()
    assert main(["predict", "--checkpoint", str(segmenter), str(clip), "--out", str(tmp_path)]) == 1
    assert "clip.mp4 is among what is looked at: give another folder" in capsys.readouterr().err
    assert clip.read_bytes() == before


def test_pictures_of_other_sizes_fit_the_first(tmp_path: Path) -> None:
    from atmnet.predicting.annotated import AnnotatedVideo

    video = AnnotatedVideo(tmp_path / "clip.mp4", strip=True)
    for size, time in (((501, 301), 0), ((200, 400), 0), ((5000, 100), 1.5)):
        video.write(Image.new("RGB", size, "red"), [("all: 3 %", (255, 0, 0))], time)
    assert not (tmp_path / "clip.mp4").exists()
    video.close()
    drawn = seen(tmp_path / "clip.mp4")
    assert len({picture.size for _, picture in drawn}) == 1 and [time for time, _ in drawn] == pytest.approx([0, 1 / 60_000, 1.5])
    red = np.asarray(drawn[0][1])[150, 250].astype(int)
    assert np.abs(red - (255, 0, 0)).max() < 8  # the colours survive
