"""Images that cannot be read: each is named once, skipped, and too many of them end the run."""

from accelerate.utils import gather_object

from .errors import RunError
from .weights import shorten

Unreadable = tuple[str, str]  # the name of an image, and why


class BrokenImages:
    """Names each unreadable image once, and gives up, on every process alike, when there are too many or nothing but such."""

    def __init__(self, allowed: int, images: int) -> None:
        self.allowed, self.images = allowed, images
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
                f"{len(self.found)} images cannot be read, more than --max-broken {self.allowed} allows: {names}. "
                "Repair or remove them, or give a larger --max-broken (a training goes on with --resume)"
            )
        raise RunError(f"none of the {self.images} images can be read: {names}")
