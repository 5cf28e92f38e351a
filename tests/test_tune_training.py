"""Training tunes first on a GPU, once for all processes; nothing of it can end a run. The GPU here is made up."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from atmnet_train.common import task
from atmnet_train.common.tuning import tune_kernels
from torch import nn

import atm_triton
from atm_triton.tuning import tables
from atm_triton.tuning.tune import Tuned

CPU = torch.device("cpu")
CONFIGS = {"kernel/1x1/C1/G1/float32": {"BLOCK_N": 1}}


@pytest.fixture
def made_up_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(tables, "gpu_slug", lambda device: "made-up")
    monkeypatch.setattr(tables, "USER_CACHE", tmp_path / "cache")
    tables.forget_tables()
    yield
    tables.forget_tables()


def test_the_shape_and_precision_of_a_training_batch(made_up_gpu, fresh_accelerate, monkeypatch) -> None:
    seen = []

    def tune(model: nn.Module, *inputs: torch.Tensor) -> Tuned:
        seen.append((model, inputs[0].shape, torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None))
        tables.table(CPU).update(CONFIGS)
        return Tuned(CONFIGS)

    monkeypatch.setattr(atm_triton, "tune", tune)
    model = nn.Linear(1, 1)
    tune_kernels(Accelerator(cpu=True, mixed_precision="bf16"), model, (4, 3, 32, 32))
    assert seen == [(model, (4, 3, 32, 32), torch.bfloat16)]
    assert tables.table(CPU) == CONFIGS


def test_a_failure_is_one_line_and_the_defaults(made_up_gpu, fresh_accelerate, monkeypatch, capsys) -> None:
    def tune(model: nn.Module, *inputs: torch.Tensor) -> Tuned:
        raise RuntimeError("the compiler is ill\nand says so at length")

    monkeypatch.setattr(atm_triton, "tune", tune)
    tables.table(CPU).update(CONFIGS)  # what this process has read, others may not have
    tune_kernels(Accelerator(cpu=True), nn.Linear(1, 1), (4, 3, 32, 32))
    said = "tuning failed (RuntimeError: the compiler is ill): training with the default launch configurations\n"
    assert capsys.readouterr().out == said and tables.table(CPU) == {}


def test_a_deterministic_run_measures_nothing_and_takes_nothing_measured(made_up_gpu, fresh_accelerate, monkeypatch) -> None:
    monkeypatch.setattr(atm_triton, "tune", lambda *args: pytest.fail("it tunes"))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    tables.set_table(CPU, CONFIGS)
    tune_kernels(Accelerator(cpu=True), nn.Linear(1, 1), (4, 3, 32, 32))
    assert tables.table(CPU) == {}


def test_nothing_on_a_cpu(fresh_accelerate, monkeypatch) -> None:
    monkeypatch.setattr(atm_triton, "tune", lambda *args: pytest.fail("it tunes"))
    tables.table(CPU).update(CONFIGS)
    tune_kernels(Accelerator(cpu=True), nn.Linear(1, 1), (4, 3, 32, 32))
    assert tables.table(CPU) == CONFIGS
    tables.forget_tables()


@pytest.mark.parametrize("flags", [[], ["--no-tune"]], ids=["by default", "--no-tune"])
def test_the_program_tunes_before_it_compiles(
    flags: list[str], two_classes: Path, tmp_path: Path, small_run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[object] = []
    monkeypatch.setattr(task, "tune_kernels", lambda accelerator, model, images: order.append(images))
    monkeypatch.setattr(nn.Module, "compile", lambda self: order.append("compile"))
    small_run(two_classes, tmp_path / "run", "--compile", "--model-ema-decay", "0", "--epochs", "1", *flags)
    assert order == ([] if flags else [(4, 3, 32, 32)]) + ["compile"]


def tune_in_one_of_two(fails: bool) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    table = tables.table(CPU)
    table["of this process alone"] = dict(BLOCK_N=rank)

    def tune(model: nn.Module, images: torch.Tensor) -> None:
        assert rank == 0, "only the first process measures"
        if fails:
            raise MemoryError("full")
        table["tuned"] = dict(BLOCK_N=64)

    atm_triton.tune = tune
    tune_kernels(accelerator, nn.Linear(1, 1), (2, 3, 4, 4))
    Path(f"process {rank}").write_text(str(tables.table(CPU)))
    accelerator.end_training()


@pytest.mark.parametrize("fails", [False, True], ids=["tuned", "failed"])
def test_all_processes_take_the_result_of_the_first(
    fails: bool, made_up_gpu, fresh_accelerate, two_processes: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    two_processes(tune_in_one_of_two, fails)
    held = {} if fails else {"of this process alone": {"BLOCK_N": 0}, "tuned": {"BLOCK_N": 64}}
    for rank in (0, 1):
        assert (tmp_path / f"process {rank}").read_text() == str(held)
    said = capfd.readouterr().out
    assert said.count("tuning failed") == said.count("tuning failed (MemoryError: full)") == fails
