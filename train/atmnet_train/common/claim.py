"""An output folder is one run's at a time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UsageError, environment_number

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
FOLDERS = ("logs", "pictures", "ema_pictures")  # that runs make in it


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Holds the folder, which is made where there is none, against other runs; the main process does. The kernel lets go of it when the
    process ends, however it does.

    Raises:
        UsageError: another run has it, or it cannot be written to.
    """
    if environment_number("RANK", 0) > 0:
        yield
        return
    new = not os.path.exists(output)
    descriptor = open_lock(output)
    try:
        lock(descriptor, output)
        yield
    finally:
        if new:
            with suppress(OSError):
                if os.listdir(output) == [LOCK]:  # nothing came of it
                    (output / LOCK).unlink()
                    output.rmdir()
        if descriptor in HELD:
            HELD.remove(descriptor)
        os.close(descriptor)


def open_lock(output: Path) -> int:
    try:
        output.mkdir(parents=True, exist_ok=True)
        for path in output.iterdir():
            if path.is_dir() != (path.name in FOLDERS) and (
                path.suffix in (".pt", ".safetensors", ".csv", ".json", ".yaml", ".png") or path.name in FOLDERS
            ):
                raise UsageError(f"--output {output}: {path} is in the way of what a run writes there: remove it, or give another folder")
        return os.open(output / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except (OSError, ValueError) as error:
        raise UsageError(f"--output {output} is no folder that can be written to: {error}. Give another") from error


HELD: list[int] = []  # descriptors of this process


def lock(descriptor: int, output: Path) -> None:
    try:
        if fcntl is None:
            raise OSError("this system has none")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
        raise UsageError(f"--output {output} is in use by {owner}: give another, or wait for that run to end") from None
    except OSError as error:
        print(f"{output} cannot be locked ({error}): see to it that no other run writes there", flush=True)
        return
    HELD.append(descriptor)
    with suppress(OSError):  # it is for people alone
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on host {socket.gethostname()}\n".encode())


def let_go_in_child() -> None:
    """A data worker that outlives a killed main process must not keep the folder."""
    while HELD:
        os.close(HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=let_go_in_child)
