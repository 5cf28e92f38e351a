"""Errors that end a program with one clear message instead of a traceback."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from atmnet.terminal import print_any_name

GO_ON = " The last checkpoint is whole: go on with --resume"


class UsageError(Exception):
    """Error in what was given. Raised before any long work; exit status 2."""


class RunError(Exception):
    """The run cannot go on, for a reason met on the way. Exit status 1."""


def environment_number(name: str, default: int) -> int:
    """Number that a launcher gives its processes."""
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        number = int(text)
    except ValueError:
        number = -2
    if number < -1:  # some launchers say -1 where there is a single process
        raise UsageError(f"the environment variable {name} is {text!r}, not a number of processes: unset it, or mend the launcher")
    return number


@contextmanager
def explained(advice: str = "") -> Iterator[None]:
    """Turn what the system does to a run, a full disk, a folder that is gone, a killed data worker, into an error with `advice`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        raise RunError(f"the disk is full: {error}. Make room.{advice}" if full else f"{error}.{advice}") from error
    except RuntimeError as error:
        if not is_lost_worker(error):
            raise
        raise RunError(
            f"{' '.join(str(error).split()).rstrip('.')}. Where nobody killed it, the system did, for want of memory: "
            f"give fewer --workers.{advice}"
        ) from error


def is_lost_worker(error: BaseException) -> bool:
    """Tell whether a data-loading process has died. PyTorch raises it wherever the main process is, as in the middle of a write."""
    return str(error).startswith("DataLoader worker (pid")


def run_program(main: Callable[[], object]) -> None:
    """Runs `main`, turning the two errors above into a message and an exit status."""
    print_any_name()
    try:
        with explained():
            main()
    except UsageError as error:
        # Every process of a machine meets the same bad argument; one of them says so.
        if not os.environ.get("LOCAL_RANK", "").strip("0").isdecimal():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except RunError as error:
        where = f"[process {os.environ['RANK']}] " if "RANK" in os.environ else ""
        print(f"{where}error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
