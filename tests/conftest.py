"""Fixtures of the tests of the programs."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from torch import distributed
from torch.multiprocessing import start_processes

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("train", "models", "bench", "kernels_tests")]
torch.set_num_threads(1)  # there is a process of tests for every core: more threads would only wait for each other, and busily


def reset_accelerate() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def fresh_accelerate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Prepare for running a training program in this process."""
    monkeypatch.chdir(tmp_path)  # whatever a failing test writes
    torch.set_num_threads(1)
    yield
    reset_accelerate()


@pytest.fixture(scope="session")
def run_here() -> Callable[..., None]:
    """`run_here(main, *flags)`: a training program in this process, as starting another takes longer than most runs."""

    def run(main: Callable[[list[str]], None], *flags: object) -> None:
        torch.set_num_threads(1)
        try:
            main([*map(str, flags)])
        finally:
            reset_accelerate()

    return run


def _one_of_two(rank: int, store: Path, main: Callable[..., None], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)  # a copy has none of its original's threads, for which OpenMP would wait forever
    os.environ["OMP_NUM_THREADS"] = "1"  # else Accelerate sets as many threads as there are cores
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    distributed.init_process_group("gloo", store=distributed.FileStore(str(store), 2), rank=rank, world_size=2)
    main(*arguments)


@pytest.fixture
def two_processes(tmp_path: Path) -> Callable[..., None]:
    """`two_processes(main, *arguments)`: in two processes that begin as copies of this one, with all that it has imported and patched."""
    if torch.accelerator.is_available():
        pytest.skip("a process that uses a GPU cannot be copied")

    def run(main: Callable[..., None], *arguments: object) -> None:
        reset_accelerate()
        start_processes(_one_of_two, (tmp_path / "store", main, arguments), nprocs=2, start_method="fork")

    return run


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for image in range(5):
                Image.new("RGB", (32, 32), (200 * number, 40 * image, 9)).save(tmp_path / "data" / split / name / f"{image}.png")
    return tmp_path / "data"


@pytest.fixture
def narrow_segmenters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segmentation networks that a CPU trains in seconds; how wide they are by default, their parameters in test_tables.py show."""
    from atmnet.dense import segmentation

    for name in ("FPNHead", "UPerHead", "FCNHead"):
        monkeypatch.setattr(segmentation, name, partial(getattr(segmentation, name), dim=32))
    monkeypatch.setattr(segmentation, "NECKS", {name: partial(neck, dim=32) for name, neck in segmentation.NECKS.items()})


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a run's pictures takes longer than the smallest runs themselves."""
    from atmnet_train.classification import loaders
    from atmnet_train.common import task

    for module, name in ((task, "draw_curves"), (task, "draw_grid"), (loaders, "draw_confusion"), (loaders, "draw_wrong")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(task, "show_trackers", lambda *_: None)


@pytest.fixture
def small_run(fresh_accelerate: None, no_curves: None) -> Callable[..., None]:
    """`small_run(data, output, *flags)`: two epochs of a network of 0.2 M parameters."""
    from atmnet_train import imagenet

    line = (
        "--model test_convnext --img-size 32 -b 4 --workers 0 --report-to none --epochs 2 --warmup-epochs 0 --cooldown-epochs 0 --lr 1e-3"
    )

    def run(data: Path, output: Path, *flags: str) -> None:
        imagenet.main([*line.split(), "--data-dir", str(data), "--output", str(output), *flags])

    return run
