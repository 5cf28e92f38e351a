"""Stopping when a cluster or a person asks, at a place from which the run can go on."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

# Clusters: SIGTERM, or SIGUSR1 some time before it; Ctrl-C: SIGINT; a terminal that is closed: SIGHUP. Not every system has all of them.
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Stop:
    """Remembers, within its `with` block, that a stop was asked for; the training loop looks at it between updates."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "Stop":
        heeded = [number for number in SIGNALS if not (number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN)]  # nohup
        self._previous = {number: signal.signal(number, self._on_signal) for number in heeded}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C: now
        self.signal = signal.Signals(number)

    @property
    def requested(self) -> bool:
        return self.signal is not None


def worker_init() -> Callable[[int], None]:
    """A `worker_init_fn` for data loaders. A cluster signals every process, and the last update still needs its data: workers heed
    signals only once the program itself is leaving, when multiprocessing ends them by SIGTERM and waits for it."""
    leaving = multiprocessing.RawValue("b", 0)
    atexit.register(setattr, leaving, "value", 1)
    return partial(_init_worker, leaving)


def _init_worker(leaving: Any, worker: int) -> None:
    def on_signal(number: int, frame: FrameType | None) -> None:
        if leaving.value:
            os._exit(0)

    for number in SIGNALS:
        signal.signal(number, on_signal)
