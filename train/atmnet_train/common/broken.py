"""Images that cannot be read: each is named once, skipped, and too many of them end the run."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from accelerate.utils import gather_object
from atmnet.images import describe

from .errors import RunError
from .weights import shorten

Unreadable = tuple[str, str]  # the name of an image, and why
Sample = TypeVar("Sample")


def load_or_tell(load: Callable[[], Sample], name: Callable[[], str]) -> tuple[Sample | None, list[Unreadable]]:
    """The sample, or what could not be read and why. Whatever is raised, in reading, decoding or augmenting, names the image: from a data
    worker it would come as a traceback without one."""
    try:
        return load(), []
    except Exception as error:
        return None, [(name(), describe(error))]


def first_readable(
    load: Callable[[int], Sample], name: Callable[[int], str], start: int, length: int, allowed: int
) -> tuple[Sample | None, list[Unreadable]]:
    """The sample at `start`, or, after at most `allowed` that cannot be read, the next; and those."""
    broken: list[Unreadable] = []
    for offset in range(min(allowed + 1, length)):
        index = (start + offset) % length
        sample, unreadable = load_or_tell(partial(load, index), partial(name, index))
        if sample is not None:
            return sample, broken
        broken += unreadable
    return None, broken


class BrokenImages:
    """Names each unreadable image once, and gives up, on every process alike, when there are too many or nothing but such."""

    def __init__(self, allowed: int, images: int, noun: str = "images") -> None:
        self.allowed, self.images, self.noun = allowed, images, noun
        self.found: dict[str, str] = {}  # why, by name
        self.pending = False

    def note(self, unreadable: list[Unreadable]) -> None:
        for name, why in unreadable:
            if name not in self.found:
                self.found[name], self.pending = why, True
                print(f"skipped: cannot read {name} ({' '.join(why.split())})", flush=True)

    def sync(self) -> None:
        """Brings together what each process has met. Every process must call it."""
        self.found, self.pending = dict(gather_object(list(self.found.items()))), False
        if len(self.found) <= min(self.allowed, self.images - 1):
            return
        names = shorten(list(self.found))
        if len(self.found) > self.allowed:
            raise RunError(
                f"{len(self.found)} {self.noun} cannot be read, more than --max-broken {self.allowed} allows: {names}. "
                "Repair or remove them, or give a larger --max-broken (a training goes on with --resume)"
            )
        raise RunError(f"none of the {self.images} {self.noun} can be read: {names}")
