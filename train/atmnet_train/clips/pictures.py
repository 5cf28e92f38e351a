"""Pictures of clips: frames of each side by side, and where tokens look along time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.figure import Figure
from torch import Tensor

from ..common.pictures import save, to_bytes

SHOWN = 2  # frames along each side


def sheets(clips: Tensor) -> Tensor:
    """Clips ``[B, 3, T, H, W]`` as images ``[B, 3, 2H + 1, 2W + 1]`` of four of their frames, spread over them and in the order of reading,
    with a bright line between."""
    last = clips.shape[2] - 1
    shown = [round(place * last / (SHOWN**2 - 1)) for place in range(SHOWN**2)]
    framed = F.pad(clips[:, :, shown], (0, 1, 0, 1), value=clips.max().item())
    return rearrange(framed, "b c (y x) h w -> b c (y h) (x w)", y=SHOWN)[..., :-1, :-1]


def reads(offset: Tensor) -> Tensor:
    """The share of its channels that a token ``[..., G]`` at each time reads at each other, ``[..., T, T]``, of offsets ``[..., T, G]``.

    A sample between two frames is of both, by its distance; beyond the first and the last there is nothing to read.
    """
    length = offset.shape[-2]
    times = torch.arange(length, dtype=offset.dtype)
    distance = (times[:, None, None] + offset[..., None] - times).abs()  # [..., T, G, T]
    return (1 - distance).clamp(min=0).mean(-2)


def draw_reads(
    path: Path, clips: Tensor, names: Sequence[str], offsets: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float]
) -> None:
    """Draws the frames of each clip and on them where the brightest token of the middle frame reads along time: circles, as large as the
    share of its channels. Beside them, how far in frames all tokens of that clip look ahead and back, of the layer that looks the farthest.

    Args:
        clips: ``[B, 3, T, H, W]``, normalised.
        names: Of the clips.
        offsets: Of ``atmnet.offsets.collect``, ``[B, T, H', W', 3G]``.
        mean, std: Of the normalisation.
    """
    layer, offset = max(offsets.items(), key=lambda item: item[1].chunk(3, -1)[2].abs().mean().item())
    along = offset.chunk(3, -1)[2]
    frames, height, width = along.shape[1:4]
    middle = frames // 2
    figure = Figure(figsize=(1.35 * frames + 3.2, 1.5 * len(clips) + 0.6), layout="constrained")
    grid = figure.subplots(len(clips), frames + 1, squeeze=False, width_ratios=[1] * frames + [2.2])
    figure.suptitle(f"{layer}: where the token * reads along time (circles: share of its channels), and how far all tokens do", fontsize=9)
    brightness = F.adaptive_avg_pool2d(clips[:, :, middle].mean(1), (height, width))
    for row, clip, name, light, offset in zip(grid, clips, names, brightness, along, strict=True):
        y, x = divmod(int(light.argmax()), width)
        shares = reads(offset[:, y, x])[middle]
        row[0].set_ylabel(name, fontsize=9)
        for number, (axes, share) in enumerate(zip(row, shares.tolist(), strict=False)):
            axes.imshow(to_bytes(clip[:, number], mean, std), extent=(-0.5, width - 0.5, height - 0.5, -0.5), alpha=0.6)
            axes.scatter([x], [y], s=900 * share, color="tab:green", alpha=0.75, linewidths=0)
            if number == middle:
                axes.plot(x, y, marker="*", markersize=11, color="gold", markeredgecolor="black")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(f"{share:.0%}" if share >= 0.005 else "", fontsize=7)
        row[-1].hist(offset.flatten().clamp(-3, 3).numpy(), bins=37, range=(-3, 3), color="tab:green")
        row[-1].axvline(0, color="black", linewidth=0.6)
        row[-1].set_yticks([])
        row[-1].tick_params(labelsize=7)
    grid[-1][-1].set_xlabel("offset along time, in frames", fontsize=7)
    save(figure, path)
