"""One step's process: in a time limit, with all that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PATIENCE = 5  # seconds from SIGTERM to SIGKILL, and from there on
GUARD = ["sh", "-c", "read _; kill -KILL 0"]  # its input ends with this process, however that ends


def run(command: list[str], log: Path, seconds: float, folder: Path, environment: Mapping[str, str]) -> str:
    """Status of the command. What it prints goes to ``log``; nothing that it has started outlives it, or this process."""
    with log.open("wb") as output, subprocess.Popen(GUARD, stdin=subprocess.PIPE, process_group=0) as guard:
        how = dict(stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder, process_group=guard.pid)
        process = subprocess.Popen(command, env={**os.environ, **environment}, **how)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "over budget"
        finally:  # also when this process is interrupted
            end(guard, process)
    return "ok" if code == 0 else f"failed: exit status {code}"


def end(guard: subprocess.Popen[bytes], process: subprocess.Popen[bytes]) -> None:
    """The whole group, which ``guard`` leads: a launcher may be gone at once, and what it has launched needs the time."""
    os.killpg(guard.pid, signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        guard.poll(), process.poll()  # a zombie would count
        try:
            os.killpg(guard.pid, 0)
        except ProcessLookupError:  # nothing is left
            return
        time.sleep(0.02)
    os.killpg(guard.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a driver may hold it
        process.wait(PATIENCE)
