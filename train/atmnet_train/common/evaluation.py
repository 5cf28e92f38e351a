"""The evaluation loop, whatever it measures."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import nn

from .broken import BrokenImages
from .progress import shown

EVERY = 20  # batches between two looks at what the other processes have met


@contextmanager
def evaluating(models: Mapping[str, nn.Module]) -> Iterator[None]:
    """The models in evaluation mode, and after it as they were."""
    training = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    try:
        yield
    finally:
        for name, model in models.items():
            model.train(training[name])


def readable(loader: Iterable[Any], accelerator: Accelerator, broken: BrokenImages, check_stop: Callable[[], None]) -> Iterator[Any]:
    """Batches of a loader that also tells what could not be read on the way, which is noted.

    Now and then `check_stop` is called, by all processes alike; it may raise.
    """
    for number, (batch, unreadable) in enumerate(shown(loader, "evaluation", accelerator.is_main_process), 1):
        broken.note(unreadable)
        if number % EVERY == 0:
            check_stop()
            broken.sync()
        yield batch
    broken.sync()
