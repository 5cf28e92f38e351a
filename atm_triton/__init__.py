"""ATM-Triton: the Active Token Mixer (AAAI 2023) as Triton kernels, with a plain PyTorch path for every machine without a GPU."""

from .axial_gather import axial_gather
from .backend import backend_info
from .branch_fusion import branch_fusion
from .layers import ActiveTokenMixer, ActiveTokenMixer2d, OffsetFC
from .offset_fc import offset_fc
from .swap import swap, unswap
from .token_mix import token_mix
from .tune import tune

__all__ = [
    "ActiveTokenMixer",
    "ActiveTokenMixer2d",
    "OffsetFC",
    "axial_gather",
    "backend_info",
    "branch_fusion",
    "offset_fc",
    "swap",
    "token_mix",
    "tune",
    "unswap",
]
__version__ = "0.1.0"
