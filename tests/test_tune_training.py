"""Training tunes first on a GPU, once for all processes; nothing of it can end a run. The GPU here is made up."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from common import run
from common.tuning import tune_kernels
from test_train_runs import ROOT, environment
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
    monkeypatch.setattr(run, "tune_kernels", lambda accelerator, model, images: order.append(images))
    monkeypatch.setattr(nn.Module, "compile", lambda self: order.append("compile"))
    small_run(two_classes, tmp_path / "run", "--compile", "--model-ema-decay", "0", "--epochs", "1", *flags)
    assert order == ([] if flags else [(4, 3, 32, 32)]) + ["compile"]


PROCESSES = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
import atm_triton
from atm_triton.tuning import tables
sys.path.insert(0, {train!r})
from common.tuning import tune_kernels

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
tables.gpu_slug = lambda device: "made-up"
tables.USER_CACHE = Path("nowhere")
table = tables.table(torch.device("cpu"))
table["of this process alone"] = dict(BLOCK_N=rank)

def tune(model, images):
    assert rank == 0, "only the first process measures"
    if {fails}:
        raise MemoryError("full")
    table["tuned"] = dict(BLOCK_N=64)

atm_triton.tune = tune
tune_kernels(accelerator, torch.nn.Linear(1, 1), (2, 3, 4, 4))
Path(f"process {{rank}}").write_text(str(tables.table(torch.device("cpu"))))
accelerator.end_training()
"""


@pytest.mark.parametrize("fails", [False, True], ids=["tuned", "failed"])
def test_all_processes_take_the_result_of_the_first(fails: bool, tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(PROCESSES.format(train=str(ROOT / "train"), fails=fails))
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "driver.py")]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    held = {} if fails else {"of this process alone": {"BLOCK_N": 0}, "tuned": {"BLOCK_N": 64}}
    for rank in (0, 1):
        assert (tmp_path / f"process {rank}").read_text() == str(held)
    assert done.stdout.count("tuning failed") == done.stdout.count("tuning failed (MemoryError: full)") == fails
