"""token_mix, in reading order: op.py, what it computes; mean.py, alpha.py and kernels.py, the kernels; launch.py, how they are launched."""

from .op import KERNELS, candidates, token_mix

__all__ = ["KERNELS", "candidates", "token_mix"]
