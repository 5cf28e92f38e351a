"""The operators and layers as a repository of Hugging Face's Kernel Hub, in the layout of kernels in Python alone."""

from __future__ import annotations

import base64
import hashlib
import json
from operator import methodcaller
from pathlib import Path

from .files import write_atomically

PACKAGE = Path(__file__).parent
NAME = "atm_triton"
BACKENDS = "cpu", "cuda", "rocm"  # a variant each, of the same files
SHIPPED = (
    *(
        "_triton.py",
        "algebra.py",
        "axes.py",
        "backend.py",
        "files.py",
        "flops.py",
        "layers.py",
        "plain.py",
        "reference.py",
        "strict_json.py",
    ),
    *("ops/**/*.py", "tuning/__init__.py", "tuning/tables.py", "tuning/configs/*.json"),
)

INIT = '''"""The operators of the Active Token Mixer (AAAI 2023) as Triton kernels, with a plain PyTorch path."""

from .backend import backend_info
from .layers import ActiveTokenMixer, ActiveTokenMixer1d, ActiveTokenMixer2d, ActiveTokenMixer3d, OffsetFC
from .ops.axial_gather import axial_gather
from .ops.branch_fusion import branch_fusion
from .ops.offset_fc import offset_fc
from .ops.token_mix import token_mix

__all__ = [
    "ActiveTokenMixer",
    "ActiveTokenMixer1d",
    "ActiveTokenMixer2d",
    "ActiveTokenMixer3d",
    "OffsetFC",
    "axial_gather",
    "backend_info",
    "branch_fusion",
    "offset_fc",
    "token_mix",
]
'''

OLDER = '''"""The same for older versions of kernels, which look for the kernel here."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("{id}", Path(__file__).parents[1] / "__init__.py")
_module = importlib.util.module_from_spec(_spec)
sys.modules["{id}"] = _module
_spec.loader.exec_module(_module)
__all__ = _module.__all__
globals().update({{name: getattr(_module, name) for name in __all__}})
'''

CARD = """---
library_name: kernels
license: mit
tags:
- kernels
- arxiv:2203.06108
---

# ATM-Triton

The operators of the [Active Token Mixer](https://arxiv.org/abs/2203.06108) (AAAI 2023) as Triton kernels, with their gradients, and in
plain PyTorch where there is no GPU. They need Python 3.11, torch 2.11 and einops.

```python
import torch
from kernels import get_kernel

atm = get_kernel("USER/NAME", version={version}, trust_remote_code=True)
mixer = atm.ActiveTokenMixer(dim=64, share=2)  # [B, H, W, C] -> [B, H, W, C]
y = mixer(torch.randn(8, 56, 56, 64))
```

Functions: `offset_fc`, `axial_gather`, `branch_fusion`, `token_mix`. Layers: `ActiveTokenMixer`, of
channels first `ActiveTokenMixer1d`, `ActiveTokenMixer2d`, `ActiveTokenMixer3d`, and `OffsetFC`.
`backend_info()` says which path runs and why.
"""


def write_kernel(out: Path, version: int) -> list[str]:
    """Write the repository and return the variants' identifiers, by which their operators are named: ``torch.ops.<identifier>``.

    Args:
        out: A new or empty folder.
        version: Of the kernel; the Hub has a branch ``v<version>`` for each.

    Raises:
        ValueError: the folder is not empty, or the version is no number of a branch.
    """
    if version < 1:
        raise ValueError(f"version {version}: it must be at least 1")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty")
    content = {"__init__.py": INIT.encode()}
    content |= {str(file.relative_to(PACKAGE)): file.read_bytes() for shipped in SHIPPED for file in sorted(PACKAGE.glob(shipped))}
    unique = hashlib.sha256(json.dumps(_digests(content)).encode()).hexdigest()[:10]
    identifiers = [f"_{NAME}_{backend}_{unique}" for backend in BACKENDS]
    for backend, identifier in zip(BACKENDS, identifiers, strict=True):
        files = content | {f"{NAME}/__init__.py": OLDER.format(id=identifier).encode()}
        metadata = {
            "name": NAME.replace("_", "-"),
            "id": identifier,
            "version": version,
            "license": "MIT",
            "python-depends": ["einops"],
            "backend": {"type": backend},
            "digest": {"algorithm": "sha256", "files": _digests(files)},
        }
        _write(out / "build" / f"torch-{backend}", files | {"metadata.json": json.dumps(metadata, indent=2).encode()})
    _write(out, {"README.md": CARD.format(version=version).encode()})
    return identifiers


def _digests(content: dict[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(hashlib.sha256(data).digest()).decode() for name, data in sorted(content.items())}


def _write(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        write_atomically(folder / name, methodcaller("write", data))
