"""The progress of an epoch: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, track

Item = TypeVar("Item")
POINTS = 20  # of a curve that an epoch has at least, as far as it has updates


class ProgressLine:
    """Shows where an epoch is, how fast it goes and how much of the time it waits for data.

    On a GPU the work is queued ahead, so the wait that counts is the one of the process that queues it: near 0 % while it keeps ahead.
    """

    def __init__(self, total: int, start: int, label: str, images_per_update: int, remaining: int, interval: int, shown: bool) -> None:
        self.total, self.done, self.label, self.images_per_update = total, start, label, images_per_update
        self.remaining = remaining  # updates to the end of the training
        self.interval, self.shown = interval, shown
        self.logged = min(interval, max(1, total // POINTS))  # updates between two points of a curve
        self.waited = 0.0
        self.mark = (time.perf_counter(), start, 0.0)
        self.images_per_second = 0.0
        self.data_wait = 0.0
        console = Console()
        self.bar: Progress | None = None
        if shown and console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[text]}"), console=console
            )
            self.task = self.bar.add_task(label, total=total, completed=start, text="")
            self.bar.start()

    def advance(self, loss: float, lr: float, updates: int = 1) -> bool:
        """Count `updates` more updates; True when it is time to log."""
        previous, self.done, self.remaining = self.done, self.done + updates, self.remaining - updates
        due, logged = (self.done // every > previous // every or self.done == self.total for every in (self.interval, self.logged))
        if due or logged or self.bar:
            text = self._measure(loss, lr, reset=due)
            if self.bar:
                self.bar.update(self.task, completed=self.done, text=text)
            elif self.shown and due:
                print(f"{self.label} {self.done}/{self.total} {text}", flush=True)
        return logged

    def _measure(self, loss: float, lr: float, reset: bool) -> str:
        now = time.perf_counter()
        then, done, waited = self.mark
        seconds = max(now - then, 1e-9)
        self.images_per_second = (self.done - done) * self.images_per_update / seconds
        self.data_wait = (self.waited - waited) / seconds
        eta = self.remaining * seconds / max(self.done - done, 1)
        if reset:
            self.mark = (now, self.done, self.waited)
        return (
            f"loss {loss:.4f} · lr {lr:.2e} · {self.images_per_second:.0f} images/s · data wait {self.data_wait:.0%} · "
            f"{format_seconds(eta)} left"
        )

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
        sys.stdout.flush()


def lines(items: Iterable[Item], label: str, seconds: float = 30) -> Iterator[Item]:
    """Passes `items` on, with a line on how many there were every so many seconds."""
    total = f"/{len(items)}" if isinstance(items, Sized) else ""
    said = time.perf_counter()
    for number, item in enumerate(items, 1):
        yield item
        if time.perf_counter() - said >= seconds:
            said = time.perf_counter()
            print(f"{label} {number}{total}", flush=True)


def shown(items: Iterable[Item], label: str, here: bool = True) -> Iterable[Item]:
    """`items` with a bar that goes when it is full, on a terminal; a line now and then elsewhere. `here`: only on one process."""
    console = Console()
    if not here:
        return items
    if console.is_terminal:
        return track(items, label, console=console, transient=True)
    return lines(items, label)


def format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02d}:{minutes:02d}:{seconds:02d}" if days else f"{hours}:{minutes:02d}:{seconds:02d}"
