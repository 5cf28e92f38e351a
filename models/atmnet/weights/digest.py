"""A digest of what a file holds, kept inside it: storage that flips a bit, or a copy that broke off, is noticed when it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest_of(content: Any) -> str:
    """SHA-256 of tensors and plain values in nested mappings and sequences; the order of a mapping's items does not count."""
    found = hashlib.sha256()
    _add(found, content)
    return found.hexdigest()


def _add(found: Any, content: Any) -> None:
    if isinstance(content, Mapping):
        found.update(b"{%d" % len(content))
        for key in sorted(content, key=repr):
            found.update(repr(key).encode())
            _add(found, content[key])
    elif isinstance(content, (list, tuple)):
        found.update(b"[%d" % len(content))
        for item in content:
            _add(found, item)
    elif isinstance(content, Tensor):
        found.update(f"{content.dtype}{list(content.shape)}".encode())
        if content.numel():
            found.update(content.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    else:
        found.update(repr(content).encode())
