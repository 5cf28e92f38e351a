"""Training on macOS, which has fewer system calls and starts processes afresh: simulated by taking away what it lacks."""

import errno
import importlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from accelerate import Accelerator
from atmnet_train import imagenet
from atmnet_train.classification.loaders import train_loader
from atmnet_train.common import runtime, stop
from atmnet_train.common.broken import BrokenImages
from atmnet_train.common.errors import run_program

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def fewer_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Systems without os.sched_getaffinity, SIGUSR1 and SIGHUP, or EDQUOT: macOS lacks the first, Windows all."""
    lacking: list[tuple[ModuleType, str]] = [
        (os, "sched_getaffinity"),
        (signal, "SIGUSR1"),
        (signal, "SIGHUP"),
        (errno, "EDQUOT"),
    ]
    for module, name in lacking:
        monkeypatch.delattr(module, name, raising=False)
    importlib.reload(stop)  # which asks when it is imported
    yield
    monkeypatch.undo()
    importlib.reload(stop)


def test_it_trains_and_stops_with_fewer_calls(
    fewer_calls: None, small_run: Callable[..., None], two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stop.SIGNALS == (signal.SIGTERM, signal.SIGINT)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert runtime.default_workers() == min(8, os.cpu_count() or 1)
    with stop.Stop() as asked:
        signal.raise_signal(signal.SIGTERM)
    assert asked.requested
    small_run(two_classes, tmp_path / "run", "--epochs", "1", "--workers", "1")
    assert (tmp_path / "run" / "last.pt").exists()


def test_an_error_of_the_system_is_still_told(fewer_calls: None, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise PermissionError(errno.EACCES, "not here")

    with pytest.raises(SystemExit, match="1"):
        run_program(main)
    assert "error: [Errno 13] not here" in capsys.readouterr().err


def test_workers_that_start_afresh_load_the_same_batch(two_classes: Path) -> None:
    line = ["--data-dir", str(two_classes), "--img-size", "32", "-b", "2", "--workers", "1"]
    settings = imagenet.parse(line)
    images = imagenet.open_both(settings, print)[0]
    batches = []
    for start in ("fork", "spawn"):
        loader = train_loader(images, settings, Accelerator(cpu=True), (0.5,) * 3, (0.5,) * 3, BrokenImages(0, 10))
        loader.loader.multiprocessing_context = start  # type: ignore[attr-defined]
        batches.append(next(iter(loader.batches(0, 0))))
    assert all((ours == theirs).all() for ours, theirs in zip(*batches, strict=True))
