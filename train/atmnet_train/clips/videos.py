"""Labelled videos for training and evaluation: finding them, checking them, reading clips of them."""

import csv
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from atmnet.clips import Clips, ClipView, normalised, read
from atmnet.images import natural
from atmnet.videos import ENDINGS, Video, library, open_video
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop, v2

from ..classification.images import Folder, Images, TrainImages, class_folders, class_indices, image_name, open_folder, split_folder
from ..common.broken import Unreadable, load_or_tell
from ..common.errors import UsageError
from ..common.listing import Tell
from ..common.weights import shorten
from .settings import VideoAugmentationSettings, VideoDataSettings

COLUMNS = ["path", "label"]


class Videos(Folder):
    """The videos below a folder. One of them, by its number, is shown as the frame in its middle."""

    noun, reads, wanted = "videos", "FFmpeg", ENDINGS

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, target = self.samples[index]
        return open_video(file).middle(), target


class ListedVideos(Videos):
    """The videos of a list."""

    def __init__(self, root: Path, samples: list[tuple[str, int]]) -> None:
        self.root, self.samples = os.fspath(root), samples


def check_library() -> None:
    try:
        library()
    except ImportError as error:
        raise UsageError(str(error)) from error


def open_split(settings: VideoDataSettings, split: str, listed: str | None, classes: dict[str, int] | None, tell: Tell = print) -> Images:
    """The videos of one split. `classes`: known already, from the training split or the checkpoint."""
    root = Path(str(settings.data_dir))
    if listed is None:
        folder = split_folder(root, split)
        return open_folder(folder, classes or class_indices(class_folders(folder), None), tell, Videos)
    rows = read_list(Path(listed), root)
    names = sorted({label for _, label in rows}, key=natural)
    known = classes or class_indices(names, None)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"{listed} has {len(unknown)} classes that training does not know: {shorten(unknown)}")
    samples = [(path, known[label]) for path, label in sorted(rows, key=lambda row: natural(row[0]))]  # an epoch's order is of the videos
    return Images(ListedVideos(root, samples), known)


def read_list(path: Path, root: Path) -> list[tuple[str, str]]:
    """The videos of a list, as paths that lead to them, and their labels; refuses lines that say no such thing, by their number."""
    wrong, rows, seen = list[str](), list[tuple[str, str]](), dict[str, int]()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file, strict=True)
            if (heading := next(lines, [])) != COLUMNS:
                raise UsageError(f"{path} line 1: the heading must be {','.join(COLUMNS)}, not {','.join(heading)[:80]}")
            for row in filter(None, lines):
                row = [cell.strip() for cell in row]
                if len(row) != len(COLUMNS) or not all(row):
                    wrong.append(f"line {lines.line_num}: {','.join(row)[:80]} is not a path and a label")
                    continue
                video, label = os.path.join(root, row[0]), row[1]
                if video in seen:
                    wrong.append(f"line {lines.line_num}: {row[0]} stands on line {seen[video]} too")
                elif not os.path.isfile(video):
                    wrong.append(f"line {lines.line_num}: there is no {video}")
                seen[video] = lines.line_num
                rows.append((video, label))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} is no list of videos that can be read: {error}") from error
    if wrong:
        raise UsageError(f"{path} {shorten(wrong, 3)}")
    if not rows:
        raise UsageError(f"{path} lists no videos")
    return rows


class ClipTransform:
    """A clip at random, cropped, mirrored and coloured alike in all its frames."""

    def __init__(self, clips: Clips, data: VideoDataSettings, augmentation: VideoAugmentationSettings, mean: Any, std: Any) -> None:
        self.clips, self.side, self.interpolation = clips, data.img_size, data.interpolation
        self.scale, self.ratio, self.mean, self.std = list(augmentation.scale), list(augmentation.ratio), mean, std
        jitter = augmentation.color_jitter
        self.augment = v2.Compose([v2.RandomHorizontalFlip(augmentation.hflip), v2.ColorJitter(jitter, jitter, jitter)])

    def __call__(self, video: Video) -> Tensor:
        times = self.clips.drawn(video)
        width, height = video.size
        # Of a picture it takes the size alone.
        top, left, tall, wide = RandomResizedCrop.get_params(torch.empty(height, width, device="meta"), self.scale, self.ratio)
        clip = read(video, times, [(left, top, left + wide, top + tall)], self.side, self.interpolation)[0]
        return normalised(self.augment(clip), self.mean, self.std)


class TrainClips(TrainImages):
    """A clip of each video, of whichever frames its random numbers choose; in place of an unreadable video comes the next readable one."""

    def read(self, index: int) -> tuple[Any, int]:
        file, target = self.source.samples[index]
        return open_video(file), target

    def blank(self) -> Tensor:
        return torch.zeros(3, self.transform.clips.frames, self.transform.side, self.transform.side)


class ValClips(Dataset[tuple[Tensor, int, list[Unreadable], int]]):
    """The clips of each video, one after the other, with the video's number; those of an unreadable one get the target -1."""

    def __init__(self, source: Videos, view: ClipView) -> None:
        self.source, self.view = source, view

    def __len__(self) -> int:
        return len(self.source) * self.view.clips.number

    def __getitem__(self, index: int) -> tuple[Tensor, int, list[Unreadable], int]:
        number, clip = divmod(index, self.view.clips.number)
        file, label = self.source.samples[number]
        found, broken = load_or_tell(lambda: self.view(open_video(file), clip), partial(image_name, self.source, number))
        if found is None:
            clips, side = self.view.clips, self.view.side
            found, label = torch.zeros(clips.crops, 3, clips.frames, side, side), -1
        return found, label, broken, number
