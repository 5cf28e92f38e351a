"""token_mix: op.py, what it computes; gather.py, alpha.py, fold.py, fuse.py, scatter.py, the kernels; launch.py, their launches."""

from .op import KERNELS, candidates, token_mix

__all__ = ["KERNELS", "candidates", "token_mix"]
