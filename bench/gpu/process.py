"""One step's process: in a time limit, with all that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PATIENCE = 5  # seconds from SIGTERM to SIGKILL


def run(command: list[str], log: Path, seconds: float, folder: Path, environment: Mapping[str, str]) -> tuple[str, float]:
    """Its status and the seconds it took. What it prints goes to ``log``; nothing that it has started outlives it."""
    begun = time.monotonic()
    with log.open("wb") as output:
        how = dict(stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True)
        process = subprocess.Popen(command, env={**os.environ, **environment}, **how)
        try:
            code = process.wait(seconds)
            status = "ok" if code == 0 else f"failed: exit status {code}"
        except subprocess.TimeoutExpired:
            status = "over budget"
        finally:  # also when this process is interrupted
            end(process)
    return status, time.monotonic() - begun


def end(process: subprocess.Popen[bytes]) -> None:
    """``process`` leads its group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    with suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
