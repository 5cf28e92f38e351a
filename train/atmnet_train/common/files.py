"""Files that are either complete or as they were before."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from atm_triton import files

from .errors import RunError, is_lost_worker


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes as the library does; says how to go on where there is no room."""
    try:
        files.write_atomically(path, write)
    except (OSError, RuntimeError) as error:  # torch.save reports a failed write of its own as RuntimeError
        if is_lost_worker(error):
            raise
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> RunError:
    kept = f"{path.name} there is still the previous one" if path.exists() else f"there is no {path.name} yet"
    return RunError(
        f"cannot write {path}: {error}. {kept}. Make room or give another folder with --output, then go on with --resume {path.parent}"
    )
