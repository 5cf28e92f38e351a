"""One step's process: in a time limit, with all that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PATIENCE = 5  # seconds from SIGTERM to SIGKILL


def run(command: list[str], log: Path, seconds: float, folder: Path, environment: Mapping[str, str]) -> str:
    """Its status. What it prints goes to ``log``; nothing that it has started outlives it."""
    with log.open("wb") as output:
        how = dict(stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True)
        process = subprocess.Popen(command, env={**os.environ, **environment}, **how)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "over budget"
        finally:  # also when this process is interrupted
            end(process)
    return "ok" if code == 0 else f"failed: exit status {code}"


def end(process: subprocess.Popen[bytes]) -> None:
    """``process`` leads its group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    with suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
