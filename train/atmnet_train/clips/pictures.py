"""Pictures of clips: frames of each side by side."""

from einops import rearrange
from torch import Tensor

SHOWN = 2  # frames along each side


def sheets(clips: Tensor) -> Tensor:
    """Clips ``[B, 3, T, H, W]`` as images ``[B, 3, 2H, 2W]`` of four of their frames, spread over them and in the order of reading."""
    last = clips.shape[2] - 1
    shown = [round(place * last / (SHOWN**2 - 1)) for place in range(SHOWN**2)]
    return rearrange(clips[:, :, shown], "b c (y x) h w -> b c (y h) (x w)", y=SHOWN)
