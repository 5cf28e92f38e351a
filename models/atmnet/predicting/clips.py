"""The likeliest classes of a video."""

from __future__ import annotations

import os
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..clips import Clips, ClipView
from ..videos import Video, is_video, open_video
from .classes import Classes, Classifier
from .options import Options
from .result import check_finite


class ClipClassifier(Classifier):
    """Takes a video for one picture: the mean over its clips and crops, as its training's evaluation has it."""

    whole_videos = True

    def __init__(self, model: Any, options: Options, clips: Clips) -> None:
        super().__init__(model, options)
        config = self.config
        side = min(config["input_size"][1:])
        self.view = ClipView(clips, side, config["crop_pct"], config["interpolation"], config["mean"], config["std"])

    def sample(self) -> Tensor:
        return self.weight.new_zeros(1, 3, self.view.clips.frames, self.view.side, self.view.side)

    def open(self, file: str | os.PathLike[str]) -> Any:
        if not is_video(file):
            raise ValueError("this is a classifier of videos, which are told by endings such as .mp4")
        return open_video(file)

    def load(self, video: Any) -> tuple[Image.Image, Tensor]:
        """The frame in the middle, and all views ``[clips x crops, 3, T, H, W]``, in the size that the network takes."""
        if not isinstance(video, Video):
            raise ValueError("this is a classifier of videos: give it the path of one")
        views = torch.cat([self.view(video, clip) for clip in range(self.view.clips.number)])
        return video.middle(), views

    def find(self, loaded: list[tuple[Image.Image, Tensor]]) -> list[Classes]:
        return [self.classes(image, self._mean(views)) for image, views in loaded]

    def _mean(self, views: Tensor) -> Tensor:
        each = torch.cat([self.model(view[None].to(self.weight)).float().softmax(1).cpu() for view in views])
        check_finite(each)
        return each.mean(0)
