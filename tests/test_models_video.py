"""ATMNet of videos: it begins with the very function that a network of images has, and learns of motion."""

from __future__ import annotations

import json

import atmnet
import pytest
import timm
import torch
from atmnet import inflate
from atmnet.clips import Clips
from atmnet.tasks import about
from atmnet.variants import VIDEO

SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), num_classes=5)


def pair(dtype: torch.dtype = torch.float64, **arguments) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    image = timm.create_model("atmnet_xt", **SMALL)
    for parameter in image.parameters():  # else what is multiplied with zeros could be anything
        torch.nn.init.normal_(parameter, std=0.4)
    video = timm.create_model("atmnet_xt_video", **SMALL | arguments)
    return image.to(dtype).eval(), inflate(video, image).to(dtype).eval()


def clips(frames: int, size: tuple[int, int] = (64, 48), batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, frames, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tubelet", [1, 2])
@pytest.mark.parametrize("time", ["all", "last", "none"])
@pytest.mark.parametrize("frames", [1, 3, 4])
def test_of_a_still_clip_it_makes_the_logits_of_a_frame(frames, time, tubelet):
    image, video = pair(time=time, tubelet=tubelet)
    x = clips(1)
    torch.testing.assert_close(video(x.expand(-1, -1, frames, -1, -1)), image(x[:, :, 0]), rtol=1e-9, atol=1e-9)


def test_a_moving_clip_differs_from_frames_by_the_mean_over_them():
    """Offsets along time are zero, so frames meet in the fusion's mean alone: without time mixing, not at all."""
    image, alone = pair(time="none")
    _, together = pair(time="all")
    x = clips(4)
    by_frame = torch.stack([image(x[:, :, t]) for t in range(4)])
    torch.testing.assert_close(alone(x), by_frame.mean(0), rtol=1e-9, atol=1e-9)
    assert (together(x) - by_frame.mean(0)).abs().max() > 1e-5
    assert not torch.allclose(together(x), alone(x))
    torch.testing.assert_close(together(x.flip(2)), together(x))  # nobody knows yet in which order they come


def test_the_branch_along_time_learns_from_the_first_step():
    _, video = pair()
    x = clips(4)
    video(x).square().sum().backward()
    makers = [block for stage in video.stages for block in stage.blocks if block.offset is not None]
    for block in makers:
        assert block.offset.weight.grad.chunk(3)[2].abs().max() > 0
    assert all(block.mixer.fc_t.weight.grad.abs().max() > 0 for stage in video.stages for block in stage.blocks)


def test_it_sees_the_order_of_frames():
    torch.manual_seed(0)
    video = timm.create_model("atmnet_xt_video", **SMALL).double().eval()
    for parameter in video.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = clips(4)
    assert (video(x.flip(2)) - video(x)).abs().max() > 1e-5


def test_a_classifier_of_other_classes_stays_new():
    image, _ = pair()
    video = timm.create_model("atmnet_xt_video", **SMALL | dict(num_classes=7))
    before = video.head.fc.weight.clone()
    assert torch.equal(inflate(video.double(), image).head.fc.weight, before.double())


def test_what_does_not_fit():
    image, video = pair()
    with pytest.raises(ValueError, match="inflate takes a network of videos and one of images, got .*images.* and .*videos"):
        inflate(image, video)
    with pytest.raises(ValueError, match=r"stages.2.blocks.2"):
        inflate(timm.create_model("atmnet_xt_video", **SMALL | dict(depths=(1, 1, 3, 1))), image)
    with pytest.raises(ValueError, match=r"same stages, got .*videos with \[1\] blocks and .*images"):
        inflate(timm.create_model("atmnet_xt_video", depths=(1,), dims=(8,), share=(2,), mlp_ratios=(2,)), image)
    with pytest.raises(ValueError, match="the paper's mixers"):
        inflate(video, timm.create_model("atmnet_xt", **SMALL, offsets="three"))
    with pytest.raises(ValueError, match=r"clips \[B, 3, T, H, W\] of a frame or more, got \[2, 3, 64, 48\]"):
        video(clips(1)[:, :, 0])
    with pytest.raises(ValueError, match="time must be one of 'all', 'last', 'none', or None for images, got 'first'"):
        timm.create_model("atmnet_xt_video", time="first")
    with pytest.raises(ValueError, match="frames and tubelet must be 1 or more, got 0 and 1"):
        timm.create_model("atmnet_xt_video", frames=0)
    with pytest.raises(ValueError, match="tubelet=2"):
        timm.create_model("atmnet_xt", tubelet=2)


def test_dense_features_of_clips():
    video = timm.create_model("atmnet_xt_video", features_only=True, depths=SMALL["depths"], dims=SMALL["dims"])
    assert [tuple(y.shape) for y in video(torch.zeros(1, 3, 2, 64, 96))] == [
        (1, 8, 2, 16, 24),
        (1, 8, 2, 8, 12),
        (1, 16, 2, 4, 6),
        (1, 16, 2, 2, 3),
    ]


def test_timm_knows_them_and_folders_hold_them(tmp_path):
    assert set(VIDEO) <= set(timm.list_models("atmnet*"))
    _, video = pair(torch.float32, tubelet=2)
    video.save_pretrained(tmp_path)
    again = atmnet.ATMNet.from_pretrained(tmp_path)
    x = clips(3).float()
    assert torch.equal(again(x), video(x))
    assert (again.time, again.tubelet, again.frames) == ("all", 2, 16)


def test_folders_say_how_videos_are_looked_at(tmp_path):
    _, video = pair(torch.float32, frames=4)
    video.about = about(video)
    video.about.clips = Clips(4, "dense", 1, 2, 3)
    atmnet.save_pretrained(video, tmp_path)
    assert about(atmnet.open_model(tmp_path)).clips == video.about.clips
    assert about(atmnet.ATMNet.from_pretrained(tmp_path, frames=8)).clips == Clips(8, "dense", 1, 2, 3)
    card = (tmp_path / "README.md").read_text()
    assert "A classifier of videos" in card and "| clips | 2 of 4 frames, dense, each in 3 squares |" in card
    config = json.loads((tmp_path / "config.json").read_text())
    for clips, message in (({"crops": 2}, "looked at as Clips"), ({"stride": "1"}, "looked at as Clips"), ([4], "clips holds a list")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"clips": clips}))
        with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
            atmnet.open_model(tmp_path)


@pytest.mark.parametrize("time", ["all", pytest.param("last", marks=pytest.mark.exhaustive)])
def test_one_graph_for_any_clip(time):
    _, video = pair(torch.float32, time=time)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(video, fullgraph=True, backend=count)
    with torch.no_grad():
        for frames, size in ((3, (64, 48)), (4, (96, 64)), (5, (96, 128)), (7, (64, 64))):
            x = clips(frames, size).float()
            torch.testing.assert_close(compiled(x), video(x))
    assert len(graphs) <= 2
