"""Clips: which frames of a video, which part of them, and what they are to the network."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from atmnet.clips import Clips, ClipView, normalised, read, squares
from atmnet.videos import Video, VideoError, open_video
from PIL import Image
from torch import Tensor
from video_files import greys, number_of, write_video


def shown(clip: Tensor) -> list[int]:
    """Numbers of the greys in bytes ``[T, 3, H, W]``."""
    return [number_of(Image.fromarray(frame.permute(1, 2, 0).numpy())) for frame in clip]


def frames_at(video: Video, times: list[float]) -> list[int]:
    return shown(read(video, times, squares(video.size, 1, 1.0), 8, "bilinear")[0])


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Video:
    return open_video(write_video(tmp_path_factory.mktemp("clips") / "long.mp4", greys(40)))


@pytest.mark.parametrize(
    "clips,expected",
    [
        (Clips(4), [[5, 15, 25, 35]]),
        (Clips(4, number=2), [[2, 12, 22, 32], [7, 17, 27, 37]]),
        (Clips(8, number=5), [[0, 5, 10, 15, 20, 25, 30, 35], [1, 6, 11, 16, 21, 26, 31, 36]]),
        (Clips(40), [list(range(40))]),
        (Clips(4, "dense", 3), [[14, 17, 20, 23]]),
        (Clips(4, "dense", 3, number=3), [[4, 7, 10, 13], [14, 17, 20, 23], [24, 27, 30, 33]]),
        (Clips(8, "dense", 10), [[0, 5, 10, 15, 20, 25, 30, 35]]),  # 80 frames there are not: uniform
    ],
)
def test_frames_of_an_evaluation(clips: Clips, expected: list[list[int]], long: Video) -> None:
    assert [frames_at(long, clips.chosen(long, clip)) for clip in range(len(expected))] == expected


def test_frames_of_a_training_are_from_anywhere(long: Video) -> None:
    torch.manual_seed(0)
    uniform = [frames_at(long, Clips(4).drawn(long)) for _ in range(30)]
    for place in range(4):
        there = {clip[place] for clip in uniform}
        assert there <= set(range(10 * place, 10 * place + 10)) and len(there) > 6
    dense = [frames_at(long, Clips(4, "dense", 3).drawn(long)) for _ in range(60)]
    assert all(following - before == 3 for clip in dense for before, following in pairwise(clip))
    starts = {clip[0] for clip in dense}
    assert len(starts) > 15 and min(starts) < 4 and max(starts) > 24 and max(starts) <= 28
    torch.manual_seed(0)
    assert frames_at(long, Clips(4).drawn(long)) == uniform[0]


def test_equal_times_of_a_rate_that_varies(tmp_path: Path) -> None:
    times = [place / 100 for place in range(20)] + [0.2 + place for place in range(4)]  # 20 frames in a moment, and 4 in seconds
    video = open_video(write_video(tmp_path / "varies.mp4", greys(24), times, bf="0"))
    found = frames_at(video, Clips(8).chosen(video, 0))
    assert found == sorted(found) and found[0] <= 20 and {*found[2:]} == {21, 22, 23}


@pytest.mark.parametrize("length,frames", [(5, 5), (5, 6), (1, 1), (1, 2)])
def test_too_short(length: int, frames: int, tmp_path: Path) -> None:
    video = open_video(write_video(tmp_path / "short.mp4", greys(length)))
    if frames <= length:
        assert frames_at(video, Clips(frames).chosen(video, 0)) == list(range(frames))
        return
    for times in (lambda: Clips(frames).chosen(video, 0), lambda: Clips(frames, "dense").drawn(video)):
        with pytest.raises(VideoError, match=f"too short: it has {length} of a clip's {frames} frames"):
            times()


def test_of_unknown_length() -> None:
    known: dict[str, Any] = dict(path="clip.webm", size=(8, 8), start=0.0)
    for fps, duration, length in ((None, None, 9), (Fraction(10), None, None), (None, 2.0, None)):
        with pytest.raises(VideoError, match="does not say how long it is"):
            Clips(4).drawn(Video(fps=fps, duration=duration, length=length, **known))
    assert Clips(4).chosen(Video(fps=None, duration=2.0, length=8, **known), 0) == [0.25, 0.75, 1.25, 1.75]


def test_crops(tmp_path: Path) -> None:
    assert squares((100, 50), 1, 1.0) == [(25, 0, 75, 50)]
    assert squares((100, 50), 3, 1.0) == [(0, 0, 50, 50), (25, 0, 75, 50), (50, 0, 100, 50)]
    assert squares((40, 100), 3, 0.5) == [(10, 0, 30, 20), (10, 40, 30, 60), (10, 80, 30, 100)]
    picture = Image.new("RGB", (96, 48), "red")
    picture.paste("blue", (48, 0, 96, 48))
    video = open_video(write_video(tmp_path / "wide.mp4", [picture] * 4))
    view = ClipView(Clips(4, crops=3), 16, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(video, 0)
    assert view.shape == (3, 3, 4, 16, 16)
    left, middle, right = view.mean((2, 3, 4))
    assert left[0] > 0.8 and left[2] < -0.8 and right[0] < -0.8 and right[2] > 0.8 and abs(middle[0] - middle[2]) < 0.1


def test_frames_that_change_their_size(tmp_path: Path) -> None:
    """A file's frames are cropped by the size of its first."""
    picture = Image.new("RGB", (96, 48), "red")
    picture.paste("blue", (48, 0, 96, 48))
    video = open_video(write_video(tmp_path / "wide.mp4", [picture] * 2))
    boxes, times = squares(video.size, 3, 1.0), [0.0, 0.1]
    expected = read(video, times, boxes, 16, "bilinear")
    for size in ((192, 96), (48, 24)):
        found = read(replace(video, size=size), times, squares(size, 3, 1.0), 16, "bilinear")
        assert (found.float() - expected.float()).abs().mean() < 6


def test_normalised() -> None:
    clip = torch.randint(256, (2, 5, 3, 4, 4)).byte()
    found = normalised(clip, (0.1, 0.2, 0.3), (0.5, 0.25, 1.0))
    assert found.shape == (2, 3, 5, 4, 4)
    torch.testing.assert_close(found[1, 1, 3], (clip[1, 3, 1] / 255 - 0.2) / 0.25)
