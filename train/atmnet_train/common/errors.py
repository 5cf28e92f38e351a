"""Errors that end a program with one clear message instead of a traceback."""

import errno
import os
import sys
from collections.abc import Callable

from atmnet.terminal import print_any_name


class UsageError(Exception):
    """Error in what was given. Raised before any long work; exit status 2."""


class RunError(Exception):
    """The run cannot go on, for a reason met on the way. Exit status 1."""


def run_program(main: Callable[[], object]) -> None:
    """Runs `main`, turning the two errors above into a message and an exit status."""
    print_any_name()
    try:
        main()
    except UsageError as error:
        # Every process of a machine meets the same bad argument; one of them says so.
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except RunError as error:
        fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise
        fail(f"the disk is full: {error}. The last checkpoint is whole: make room, then go on with --resume")


def fail(message: str) -> None:
    where = f"[process {os.environ['RANK']}] " if "RANK" in os.environ else ""
    print(f"{where}error: {message}", file=sys.stderr, flush=True)
    sys.exit(1)
