"""Videos: their frames upright, in order and at given times, and what is said of those that cannot be read."""

from __future__ import annotations

import os
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atmnet import videos
from atmnet.clips import Clips
from atmnet.images import open_image
from atmnet.videos import Frame, VideoError, is_video, open_video
from image_files import write_turned
from PIL import Image
from video_files import greys, number_of, turn, write_sound, write_video, write_with_sound


def test_frames_come_in_order_at_their_times(tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip.mkv", "clip.mov"):
        video = open_video(write_video(tmp_path / name, greys(25)))
        assert (video.size, video.fps, video.length) == ((64, 48), 10, 25) and isinstance(video.fps, Fraction)
        assert video.duration == pytest.approx(2.5, abs=0.11)
        frames = list(video.frames())
        assert [number_of(frame.image) for frame in frames] == list(range(25))
        assert [frame.time for frame in frames] == pytest.approx([place / 10 for place in range(25)], abs=1e-3)
        assert [number_of(frame.image) for frame in video.frames(every=10)] == [0, 10, 20]


def test_frames_that_come_now_and_then_keep_their_times(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.9, 1.0, 2.75, 3.0]
    video = open_video(write_video(tmp_path / "phone.mp4", greys(7), [time + 5 for time in times]))
    assert [frame.time for frame in video.frames()] == pytest.approx(times, abs=1e-3)


def test_the_last_of_frames_that_come_now_and_then_is_reached(tmp_path: Path) -> None:
    """The header of such a file, with frames that refer to later ones, says 2.75 seconds."""
    times = [0.0, 0.1, 0.15, 0.9, 1.0, 1.75, 2.0, 2.5, 2.9, 4.5]
    video = open_video(write_video(tmp_path / "phone.mp4", greys(10), times, bf="3"))
    assert video.duration is not None and 4.5 < video.duration < 4.7
    drawn = Clips(frames=9).chosen(video, 0)
    assert drawn[-1] > 4 and [number_of(frame.image) for frame in video.at(drawn)][-1] == 9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_frames_are_upright(orientation: int, tmp_path: Path) -> None:
    write_turned(tmp_path / "image.png", orientation)
    with Image.open(tmp_path / "image.png") as stored:
        path = write_video(tmp_path / "clip.mp4", [stored.convert("RGB")] * 3)
    turn(path, orientation)
    video, upright = open_video(path), open_image(tmp_path / "image.png")
    assert video.size == upright.size
    for frame in [*video.frames(), *video.at([0.1])]:
        assert np.abs(np.asarray(frame.image).astype(int) - np.asarray(upright)).mean() < 4


def test_pixels_are_square(tmp_path: Path) -> None:
    video = open_video(write_video(tmp_path / "wide.mp4", greys(3), ratio=Fraction(16, 11)))
    assert video.size == (93, 48) and {frame.image.size for frame in video.frames()} == {(93, 48)}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Filled with a mark for every frame that is decoded."""
    marks: list[Any] = []
    decode = videos._decoded

    def counting(container: Any, stream: Any):
        for frame in decode(container, stream):
            marks.append(None)
            yield frame

    monkeypatch.setattr(videos, "_decoded", counting)
    return marks


KINDS = {
    "long.mp4": {},
    "long.mkv": {},
    "long.ts": {},
    "long.avi": dict(codec="mpeg4", ticks=10),
    "reordered.avi": dict(ticks=10, bf="3"),
    "long.mpg": dict(codec="mpeg2video", ticks=25),
    "long.m2v": dict(codec="mpeg2video", ticks=25),
    "long.flv": {},
}


@pytest.mark.parametrize("name", KINDS)
def test_frames_at_given_times(name: str, tmp_path: Path, decoded: list[Any]) -> None:
    rate = min(25, KINDS[name].get("ticks", 10))  # MPEG-2 knows no ten a second
    times = [place / rate for place in range(60)]
    video = open_video(write_video(tmp_path / name, greys(60), times, g="8", **KINDS[name]))
    assert video.duration == pytest.approx(60 / rate, abs=0.05)
    frames = list(video.frames())
    assert [number_of(frame.image) for frame in frames] == list(range(60))
    for wanted in ([0.0, 0.29, 0.31, 3.33, 5.9, 100.0], [4.4, -1.0, 2.0, 2.0, 5.01, 0.0], [place / 4 for place in range(24)]):
        found = list(video.at(wanted))
        distances = [abs(one.time - time) for one, time in zip(found, wanted, strict=True)]
        assert distances == pytest.approx([min(abs(frame.time - time) for frame in frames) for time in wanted], abs=1e-3)
        for one in found:  # at a time that is its own; an MPEG-2's may be two frames'
            assert number_of(one.image) in [number_of(frame.image) for frame in frames if abs(frame.time - one.time) < 1e-3]
    if name == "long.mp4":
        decoded.clear()
        assert number_of(next(video.at([5.5])).image) == 55 and len(decoded) <= 9
        decoded.clear()
        assert len(list(islice(video.frames(), 2))) == 2 == len(decoded)


def damaged(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.mp4"
    if kind == "text":
        path.write_text("no video\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sound":
        write_sound(path)
    elif kind == "playlist":
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{write_video(tmp_path / 'other.mp4', greys(3))}\n")
    elif kind == "headless":  # its index, at the end, is cut off
        write_video(tmp_path / "whole.mov", greys(9))
        path.write_bytes((tmp_path / "whole.mov").read_bytes()[:-200])
    elif kind == "long":
        write_video(path, [Image.new("RGB", (600, 2))])
    return path


@pytest.mark.parametrize(
    "kind,message",
    [
        ("text", "FFmpeg says: Invalid data"),
        ("empty", "it is empty"),
        ("pipe", "it is not a regular file"),
        ("folder", "it is not a regular file"),
        ("sound", "there is no video in it, but audio"),
        ("playlist", "FFmpeg says: "),
        ("headless", "End of file"),
        ("long", r"it is 600 x 2 pixels: more than 250 times as long"),
        ("missing", "No such file"),
    ],
)
def test_what_is_no_video_says_so(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=message) as raised:
        open_video(damaged(tmp_path, kind))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_frames_before_the_damage_come(name: str, tmp_path: Path) -> None:
    noise = [Image.effect_noise((64, 48), 90).convert("RGB") for _ in range(50)]
    whole = write_video(tmp_path / f"whole-{name}", noise, g="5", bf="0")
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    kept: list[Frame] = []
    with pytest.raises(VideoError, match=r"^after \d+ frames: ") as raised:
        for frame in open_video(path).frames():
            kept.append(frame)
    assert 10 < len(kept) < 40 and f"after {len(kept)} frames" in str(raised.value)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.webm", "clip.mp4"])
def test_no_frame_stands_for_those_that_are_missing(name: str, tmp_path: Path) -> None:
    noise = [Image.effect_noise((64, 48), 90).convert("RGB") for _ in range(50)]
    whole = write_video(tmp_path / f"whole-{name}", noise, g="5", **dict(codec="libvpx") if name == "clip.webm" else {})
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    frames = open_video(path).at([0.0, 1.0, 4.5])
    assert [next(frames).time, next(frames).time] == pytest.approx([0.0, 1.0], abs=1e-3)
    with pytest.raises(VideoError, match=r"it ends at [12]\.\d of 5\.0 seconds|is missing or damaged|Invalid data found"):
        next(frames)
    assert [frame.time for frame in open_video(whole).at([4.9, 100])] == pytest.approx([4.9, 4.9], abs=1e-3)


@pytest.mark.parametrize("name", ["clip.mkv", "untold.mkv", "clip.mp4", "clip.ts"])
def test_a_sound_may_last_longer(name: str, tmp_path: Path) -> None:
    path = write_with_sound(tmp_path / name, greys(20), 6)
    if name == "untold.mkv":
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"SOMEHOW "))
    video = open_video(path)
    assert video.duration == pytest.approx(2, abs=0.05) and video.length == 20
    assert len(list(video.frames())) == 20


def test_endings() -> None:
    assert is_video("a/B.MP4") and is_video(Path("x.webm")) and not is_video("x.ts") and not is_video("x.gif") and not is_video("mp4")
