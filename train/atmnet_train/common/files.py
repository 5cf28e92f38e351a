"""Files that are either complete or as they were before."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .errors import RunError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes beside `path`, then renames: a crash or a full disk leaves the old file untouched."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save reports a failed write of its own as RuntimeError
        temporary.unlink(missing_ok=True)
        kept = f"{path.name} there is still the previous one" if path.exists() else f"there is no {path.name} yet"
        raise RunError(
            f"cannot write {path}: {error}. {kept}. Make room or give another folder with --output, then go on with --resume {path.parent}"
        ) from error
