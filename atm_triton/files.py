"""Files that are at every moment whole: the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replaced(path: Path, shared: bool = False) -> Iterator[Path]:
    """A path beside ``path``, of the same suffix, to write a file to; it becomes ``path`` when all went well, else it is removed.

    Args:
        path: The file; its folder is made.
        shared: Processes may write it at the same time, each beside it under a name of its own. Else the name is always the same, so that
            what a killed process has left is written over.
    """
    own = f".{secrets.token_hex(8)}" if shared else ""
    partial = path.with_name(f".{path.stem}{own}.partial{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        sync(partial)  # the name must not be on disk before the content,
        os.replace(partial, path)
        sync(path.parent)  # and must survive a power cut itself
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], object], shared: bool = False) -> None:
    """Give ``write`` an open file whose content replaces that of ``path`` when all went well; ``shared`` as in ``replaced``."""
    with replaced(path, shared) as partial, partial.open("wb") as file:
        write(file)


def sync(path: Path) -> None:
    """Return when what was written to a file, or in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
