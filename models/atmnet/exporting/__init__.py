"""Models for use without this library: torch.export programs, AOTInductor packages, ONNX. Exporting takes the plain PyTorch path by itself:
no operator of ours is in the files."""

from .formats import FORMATS
from .tracing import TOLERANCE, export_program
from .writing import Exported, export

__all__ = ["FORMATS", "TOLERANCE", "Exported", "export", "export_program"]
