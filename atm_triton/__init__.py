"""ATM-Triton: the Active Token Mixer (AAAI 2023) as Triton kernels, with a plain PyTorch path for every machine without a GPU."""

from .backend import backend_info
from .layers import ActiveTokenMixer, ActiveTokenMixer1d, ActiveTokenMixer2d, ActiveTokenMixer3d, OffsetFC
from .ops.axial_gather import axial_gather
from .ops.branch_fusion import branch_fusion
from .ops.offset_fc import offset_fc
from .ops.token_mix import token_mix
from .swapping.report import Report
from .swapping.swap import swap, unswap
from .tuning.tune import tune

__all__ = [
    "ActiveTokenMixer",
    "ActiveTokenMixer1d",
    "ActiveTokenMixer2d",
    "ActiveTokenMixer3d",
    "OffsetFC",
    "Report",
    "axial_gather",
    "backend_info",
    "branch_fusion",
    "offset_fc",
    "swap",
    "token_mix",
    "tune",
    "unswap",
]
__version__ = "0.2.0"
