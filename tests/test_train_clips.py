"""What the training does to clips: alike to all their frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from atmnet.clips import Clips
from atmnet.videos import Video, open_video
from atmnet_train.classification.optimization import BatchLoss
from atmnet_train.clips.pictures import sheets
from atmnet_train.clips.settings import VideoAugmentationSettings, VideoDataSettings
from atmnet_train.clips.videos import ClipTransform
from PIL import Image
from video_files import write_video


@pytest.fixture
def still(tmp_path: Path) -> Video:
    """A video of one noisy picture."""
    torch.manual_seed(0)
    picture = Image.effect_noise((64, 48), 90).resize((640, 480)).resize((64, 48)).convert("RGB")
    return open_video(write_video(tmp_path / "still.mp4", [picture] * 6, crf="0"))


def transform(**augmentation: object) -> ClipTransform:
    data, settings = VideoDataSettings(img_size=24, frames=6), VideoAugmentationSettings(**augmentation)  # type: ignore[arg-type]
    return ClipTransform(Clips(6), data, settings, (0.0,) * 3, (1.0,) * 3)


def test_all_frames_are_augmented_alike(still: Video) -> None:
    found, augment = [], transform()
    for seed in range(4):
        torch.manual_seed(seed)
        found.append(augment(still))
        assert found[-1].shape == (3, 6, 24, 24)
        assert (found[-1] - found[-1][:, :1]).abs().max() < 0.08  # what the encoder makes of equal frames
    assert min((one - other).abs().mean() for one in found for other in found if one is not other) > 0.05
    torch.manual_seed(0)
    assert torch.equal(augment(still), found[0])


def test_mirrored(still: Video) -> None:
    plain, mirrored = (transform(scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3), color_jitter=0.0, hflip=share)(still) for share in (0.0, 1.0))
    assert torch.equal(plain.flip(-1), mirrored) and not torch.equal(plain, mirrored)


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_clips_are_mixed_alike_in_all_frames(cutmix: float) -> None:
    torch.manual_seed(0)
    loss = BatchLoss(VideoAugmentationSettings(mixup=0.0 if cutmix else 1.0, cutmix=cutmix, smoothing=0.0), 4)
    clips = torch.arange(4.0)[:, None, None, None, None].expand(4, 3, 5, 8, 8).contiguous()
    mixed, shares = loss.mix(clips.clone(), torch.arange(4), epoch=0)
    assert mixed.shape == clips.shape and not torch.equal(mixed, clips)
    assert torch.equal(mixed, mixed[:, :1, :1].expand_as(mixed))
    own = shares.diagonal()
    expected = own * torch.arange(4) + (1 - own) * torch.arange(3, -1, -1)
    torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), expected)
    if cutmix:
        assert set(mixed[0].unique().tolist()) == {0.0, 3.0}


def test_a_sheet_shows_first_and_last() -> None:
    clips = torch.arange(7.0)[None, None, :, None, None].expand(1, 3, 7, 2, 2)
    sheet = sheets(clips)
    assert sheet.shape == (1, 3, 5, 5) and sheet[0, 0, ::4, ::4].flatten().tolist() == [0, 2, 4, 6]
    assert (sheet[..., 2, :] == 6).all() and (sheet[..., 2] == 6).all()  # a line as bright as anything
