"""Tuning, on a GPU that is not there: the kernels run in the interpreter, and a made-up clock tells how long they take."""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from adapters import Operators
from cases import on_gpu
from functorch.compile import make_boxed_func
from interpreter import interpreted
from test_calls import Stack
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

import atm_triton
from atm_triton import ActiveTokenMixer, axial_gather
from atm_triton.ops import axial_gather as gather
from atm_triton.ops import offset_fc as fc
from atm_triton.ops.token_mix import launch as token_mix_launch
from atm_triton.testing import OPERATORS, Shape, gradients, make
from atm_triton.tuning import tables
from atm_triton.tuning import tune as tuning

CPU = torch.device("cpu")
FWD, BWD = ("axial_gather_fwd/3x4/C8/G4/float32", "axial_gather_bwd/3x4/C8/G4/float32")
DEFAULT = dict(BLOCK_N=256, BLOCK_G=4, BLOCK_S=2, num_warps=4)
SLOW, FAST = DEFAULT | {"BLOCK_N": 128}, DEFAULT | {"BLOCK_N": 512}
INPUTS = torch.randn(1, 3, 4, 8), torch.randn(1, 3, 4, 4)


class Gathers(nn.Module):
    """Gathers along both axes: two calls that share their kernels' configurations."""

    def forward(self, x, offset):
        return axial_gather(x, offset, "w") + axial_gather(x, offset, "h")


class Clock:
    """Microseconds by the configurations in force; counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.times = {DEFAULT["BLOCK_N"]: 10.0, SLOW["BLOCK_N"]: 11.0, FAST["BLOCK_N"]: 5.0}

    def __call__(self, run) -> float:
        self.asked += 1
        run()
        return sum(self.times.get(config.get("BLOCK_N"), 100.0) for config in tables.table(CPU).values())


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """The CPU is a GPU for which nothing is known yet."""
    clock = Clock()
    monkeypatch.setattr(tables, "gpu_slug", lambda device: "made-up" if device.type == "cpu" else None)
    monkeypatch.setattr(tables, "USER_CACHE", tmp_path / "user")
    monkeypatch.setattr(tables, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(tuning, "microseconds", clock)
    candidates(monkeypatch, DEFAULT, SLOW, FAST)
    tables.forget_tables()
    with interpreted():
        yield clock
    tables.forget_tables()


def candidates(monkeypatch, *configs):
    few(monkeypatch, gather, lambda found: [dict(config) for config in configs])


def few(monkeypatch, module, choose):
    original = module.candidates
    fewer = functools.wraps(original)(lambda kernel, x, groups: iter(choose(list(original(kernel, x, groups)))))
    monkeypatch.setattr(module, "candidates", fewer)


def cached() -> dict:
    return json.loads((tables.USER_CACHE / "made-up.json").read_text())


def tune(*arguments, **options):
    return atm_triton.tune(Gathers(), *(arguments or INPUTS), **{"progress": False} | options)


# ---- what is measured and kept


def test_the_fastest_is_kept_and_used(clock):
    result = tune()
    assert result.configs == {FWD: FAST, BWD: FAST} == cached()["configs"]
    assert [row.key for row in result.rows] == [FWD, BWD]
    # Two operators share each configuration. The first kernel is measured beside no other, the second beside the first at its best.
    assert [(row.default, row.tuned) for row in result.rows] == [(20.0, 10.0), (30.0, 20.0)]
    assert (result.skipped, result.dropped) == (0, 0)
    x = INPUTS[0]
    assert tables.config("axial_gather_fwd", x, 4, gather.candidates) == FAST
    assert cached()["triton"] == tables.triton.__version__ and cached()["gpu"] == "cpu"


def test_forward_only(clock):
    assert list(tune(backward=False).configs) == [FWD]


def test_a_small_gain_is_kept_and_one_that_a_repetition_contradicts_is_none(clock, monkeypatch):
    clock.times[FAST["BLOCK_N"]] = 9.99
    assert tune(backward=False).configs == {FWD: FAST} == cached()["configs"]
    clock.times = dict.fromkeys(clock.times, 10.0)
    monkeypatch.setattr(tuning, "microseconds", lambda run: clock(run) - 0.01 * clock.asked)  # a clock that drifts favours what comes last
    assert tune(backward=False, force=True).configs == {FWD: DEFAULT} == cached()["configs"]


@pytest.mark.parametrize("bad", [FAST | {"BLOCK_S": 1}, FAST | {"BLOCK_N": 0}], ids=["leaves half of the channels out", "raises"])
def test_bad_candidates_are_dropped(clock, monkeypatch, bad):
    clock.times[bad["BLOCK_N"]] = 1.0  # the fastest by far
    candidates(monkeypatch, DEFAULT, bad, SLOW)
    result = tune(backward=False)
    assert result.configs == {FWD: DEFAULT} and result.dropped == 1
    assert clock.asked == 4  # two operators by two candidates


@pytest.mark.parametrize("registers,kept", [(4, True), (5, False), (None, False)], ids=["parks a few registers", "spills", "has no room"])
def test_a_candidate_that_spills_or_has_no_room_is_dropped_before_it_runs(clock, monkeypatch, registers, kept):
    def spills(run):
        if tables.table(CPU).get(FWD) != FAST:
            return 0
        if registers is None:
            raise tables.triton.OutOfResources(2, 1, "shared memory")
        return registers

    monkeypatch.setattr(tuning, "spills", spills)
    ran, results = [], tuning._Tuner.results
    monkeypatch.setattr(tuning._Tuner, "results", lambda self, runs: ran.append(tables.table(CPU)[FWD]) or results(self, runs))
    result = tune(backward=False)
    assert result.configs == {FWD: FAST if kept else DEFAULT} and result.dropped == (not kept) and (FAST in ran) == kept


def test_what_no_kernel_has_written_is_nan():
    before = torch.get_deterministic_debug_mode()
    with tuning._poisoned():
        t = torch.ones(3)
        new = torch.empty(5), torch.empty_like(t), t.new_empty(7), torch.empty_strided((2, 3), (3, 1), dtype=torch.bfloat16)
    assert all(n.isnan().all() for n in new) and torch.get_deterministic_debug_mode() == before


def test_products_in_tf32_may_differ_more(monkeypatch):
    a = torch.randn(1000)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert tuning._alike([a], [a + 1e-3 * a], torch.float32) and not tuning._alike([a], [a + 1e-2 * a], torch.float32)


def test_results_are_compared_to_the_dtypes_rounding_and_nan_is_never_alike():
    a = torch.randn(1000)
    assert tuning._alike([a, a], [a, a + 1e-5 * a], torch.float32)
    assert not tuning._alike([a, a], [a, a + 1e-3 * a], torch.float32)
    assert tuning._alike([a], [a + 1e-2 * a], torch.bfloat16) and not tuning._alike([a], [a + 0.1 * a], torch.bfloat16)
    rows = torch.randn(1000, 64)
    rows[3], rows[5] = 0.0, 1e-6
    wrong, other = rows.clone(), rows.clone()
    wrong[7], other[5] = 0.0, 2e-6
    assert tuning._alike([rows], [other], torch.bfloat16)  # a row of nothing but cancelled numbers
    assert not tuning._alike([wrong], [rows], torch.bfloat16) and not tuning._alike([rows], [wrong], torch.bfloat16)
    nan = a.clone()
    nan[3] = math.nan
    assert not tuning._alike([nan], [nan], torch.bfloat16) and not tuning._alike([a], [nan], torch.float32)


def test_a_second_run_measures_nothing(clock):
    first = tune()
    asked = clock.asked
    second = tune(export=tables.SHIPPED / "made-up.json")
    assert clock.asked == asked and second.skipped == 2 and not second.rows and second.configs == first.configs
    assert json.loads((tables.SHIPPED / "made-up.json").read_text())["configs"] == first.configs
    assert tune(INPUTS[0][:, :2], INPUTS[1][:, :2]).skipped == 0 and clock.asked > asked  # another resolution
    assert cached()["configs"].keys() > first.configs.keys()
    asked = clock.asked
    assert len(tune(force=True).rows) == 2 and clock.asked > asked


def test_a_shipped_table_is_known_and_the_users_own_comes_first(clock):
    tables.write_table(tables.SHIPPED / "made-up.json", "cpu", {FWD: SLOW, BWD: SLOW})
    tables.write_table(tables.USER_CACHE / "made-up.json", "cpu", {BWD: FAST})
    result = tune()
    assert result.configs == {FWD: SLOW, BWD: FAST} == tables.table(CPU) and result.skipped == 2 and clock.asked == 0
    assert tune(force=True).configs == {FWD: FAST, BWD: FAST}


def test_what_another_process_measured_meanwhile_holds_too(clock):
    assert tables.table(CPU) == {}  # read, then written by another
    tables.write_table(tables.USER_CACHE / "made-up.json", "cpu", {FWD: SLOW, "another": SLOW})
    assert tune().configs == {FWD: SLOW, BWD: FAST} == tables.table(CPU)
    assert cached()["configs"] == {FWD: SLOW, BWD: FAST, "another": SLOW}


@pytest.mark.parametrize("export", [".", "file/x.json"])
def test_an_export_that_cannot_be_written_is_said_before_the_work(clock, tmp_path, export):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write export='.*': give a file"):
        tune(export=tmp_path / export)
    assert clock.asked == 0


@pytest.mark.parametrize(
    "content,warns",
    [({"triton": "3.0", "configs": {FWD: SLOW}}, False), ({"triton": None, "configs": {FWD: {"BLOCK_Z": 1}}}, False), ("not json", True)],
    ids=["another Triton", "an outdated entry", "a broken file"],
)
def test_what_cannot_be_trusted_is_measured_again(clock, content, warns, recwarn):
    tables.USER_CACHE.mkdir()
    if isinstance(content, dict):
        content = json.dumps(content | {"triton": content["triton"] or tables.triton.__version__})
    (tables.USER_CACHE / "made-up.json").write_text(content)
    assert tune(backward=False).configs == {FWD: FAST} == cached()["configs"]
    assert [str(w.message) for w in recwarn if "is not a table" in str(w.message)] == [] or warns
    assert (tables.USER_CACHE / "made-up.json.broken").exists() == warns


def test_a_broken_cache_that_cannot_be_put_aside_is_named(clock, monkeypatch):
    def locked(source, target):
        raise PermissionError(13, "Permission denied")

    tables.USER_CACHE.mkdir()
    (tables.USER_CACHE / "made-up.json").write_text("not json")
    monkeypatch.setattr(tuning.os, "replace", locked)
    with pytest.raises(ValueError, match=r"made-up\.json is not a table .* remove it"):
        tune()
    assert clock.asked == 0


def test_a_cache_that_cannot_be_written_holds_in_this_process(clock):
    tables.USER_CACHE.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match=r"cannot write .*made-up.json .*in this process only") as told:
        tune()
    assert tables.table(CPU) == {FWD: FAST, BWD: FAST}
    assert len(told) == 1


def test_an_interruption_keeps_what_was_measured(clock, monkeypatch):
    def interrupt(run):
        if clock.asked == 20:  # in the middle of the second kernel
            assert cached()["configs"] == {FWD: FAST}  # which even the end of the process leaves
            raise KeyboardInterrupt
        return clock(run)

    monkeypatch.setattr(tuning, "microseconds", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune()
    assert cached()["configs"] == {FWD: FAST} == tables.table(CPU)


def test_what_a_choice_leads_to_is_tuned_too(clock, monkeypatch):
    """An operator with two algorithms, of which the second, of another kernel, is the faster one."""
    look_up = tables.config

    def either(kernel, x, groups):
        yield from (dict(FOLD=0), dict(FOLD=1))

    def config(kernel, x, groups, candidates):
        other = kernel == "axial_gather_fwd" and look_up("axial_gather", x, groups, either)["FOLD"]
        return look_up("axial_gather_other" if other else kernel, x, groups, candidates)

    monkeypatch.setattr(tables, "config", config)
    choice, other = (FWD.replace("axial_gather_fwd", kernel) for kernel in ("axial_gather", "axial_gather_other"))
    table = tables.table(CPU)
    monkeypatch.setattr(tuning, "microseconds", lambda run: 9.0 - table.get(choice, {}).get("FOLD", 0) - (table.get(other) == FAST))
    result = tune(backward=False)
    assert result.configs == {choice: dict(FOLD=1), FWD: DEFAULT, other: FAST}
    # And back, from what the cache holds.
    monkeypatch.setattr(tuning, "microseconds", lambda run: 9.0 + tables.table(CPU)[choice]["FOLD"])
    result = tune(backward=False, force=True)
    assert result.configs == {choice: dict(FOLD=0), other: DEFAULT, FWD: DEFAULT}


def test_plain_pytorch_is_a_candidate_of_what_is_compiled(clock, monkeypatch):
    """Plain PyTorch is faster in a forward pass, slower with gradients."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # nothing here compiles for a GPU that is not there

    def microseconds(run):
        with Operators() as called:
            made = run()
        return (1.0 if len(made) == 1 else 3.0) if not called.names else 2.0

    monkeypatch.setattr(tuning, "microseconds", microseconds)
    for module in (fc, token_mix_launch):
        few(monkeypatch, module, lambda found: found[:1])
    mixer, x = ActiveTokenMixer(8, 2, own_offset=False), torch.randn(1, 3, 4, 8)
    result = atm_triton.tune(mixer, x, torch.randn(1, 3, 4, 8), progress=False)
    forward, training = (f"token_mix_plain{part}/3x4/C8/G4/float32" for part in ("", "_training"))
    assert list(result.configs)[-2:] == [forward, training]  # after all kernels
    assert (result.configs[forward], result.configs[training]) == (dict(PLAIN=1), dict(PLAIN=0))
    assert [(row.default, row.tuned) for row in result.rows[-2:]] == [(2.0, 1.0), (2.0, 2.0)]
    assert cached()["configs"] == result.configs


def test_the_table_and_the_log(clock, capsys):
    tune(progress=True)
    printed = capsys.readouterr().out
    for text in ("axial_gather_fwd", "3x4 C8 G4", "float32", "20.0 µs", "10.0 µs", "2.00", "N=512 G=4 S=2 warps=4"):
        assert text in printed
    assert f"tuned {FWD}, 1 of 2\ntuned {BWD}, 2 of 2\n" in printed
    tune(force=True)
    assert capsys.readouterr().out == ""


def test_the_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "Console", functools.partial(tuning.Console, force_terminal=True))
    tune(progress=True)
    printed = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().out)
    for key, done in (FWD, 0), (BWD, 1):
        assert re.search(rf"tuning {key} [━╸╺ ]+ {done}/2", printed)
    assert f"tuned {FWD}" not in printed


def test_a_model_that_is_not_on_a_gpu(monkeypatch):
    with pytest.raises(ValueError, match=r"on a GPU, and the model and its inputs are on cpu: move both"):
        atm_triton.tune(ActiveTokenMixer(8), torch.randn(1, 2, 2, 8))
    with pytest.raises(ValueError, match=r"are on cpu, meta: move both"):
        atm_triton.tune(ActiveTokenMixer(8), torch.randn(1, 2, 2, 8, device="meta"))


def test_nothing_else_benchmarks(monkeypatch):
    def benchmark(*args, **kwargs):
        raise AssertionError("something benchmarks")

    for name in ("do_bench", "do_bench_cudagraph"):
        monkeypatch.setattr(f"triton.testing.{name}", benchmark)
    monkeypatch.setattr(tuning, "microseconds", benchmark)
    with interpreted():
        for operator in OPERATORS.values():
            gradients(operator.function, make(operator, Shape(1, 2, 3, 2, 2), torch.float32, "cpu"))
    library = Path(atm_triton.__file__).parent
    assert {path.name for path in library.rglob("*.py") if "do_bench" in path.read_text()} == {"tune.py"}


def test_the_model_is_left_as_it_was(clock, monkeypatch):
    few(monkeypatch, fc, lambda found: found[:2])
    model, x = Stack().train(), torch.randn(1, 2, 3, 8)
    model(x).sum().backward()
    tensors = {**model.state_dict(keep_vars=True)}
    before = {name: (id(t), t.detach().clone(), t.grad if t.grad is None else t.grad.clone()) for name, t in tensors.items()}
    random = torch.get_rng_state()
    assert atm_triton.tune(model, x, progress=False).rows
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    for name, t in model.state_dict(keep_vars=True).items():
        was, value, gradient = before[name]
        assert id(t) == was and torch.equal(t, value), name
        assert (t.grad is None and gradient is None) or torch.equal(t.grad, gradient), name


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_runs_take_the_configurations_of_eager_ones(dynamic, monkeypatch):
    launched = []

    def keep(graph, inputs):
        for node in graph.graph.nodes:
            if "triton_kernel_wrapper" in str(node.target):
                (options,) = kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).configs
                launched.append((node.kwargs["kwargs"]["BLOCK_N"], options.num_warps, options.num_stages))
        return make_boxed_func(graph.forward)

    keys = "axial_gather_fwd/6x9/C8/G4/bfloat16", "axial_gather_bwd/6x9/C8/G4/bfloat16"
    tuned = DEFAULT | dict(BLOCK_N=32, num_warps=8, num_stages=5)
    monkeypatch.setattr(tables, "table", lambda device: dict.fromkeys(keys, tuned))
    few(monkeypatch, gather, lambda found: [*found, tuned])
    x, offset = (torch.empty(2, 6, 9, size, device="meta", dtype=torch.bfloat16, requires_grad=True) for size in (8, 4))
    compiled = torch.compile(axial_gather, fullgraph=True, dynamic=dynamic, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    compiled(x, offset, "w").sum().backward()
    assert launched == [(32, 8, 5)] * 2


# ---- for real


@pytest.mark.parametrize("path", [on_gpu])
def test_a_tiny_model_on_a_gpu(path, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "USER_CACHE", tmp_path)
    tables.forget_tables()
    model, x = ActiveTokenMixer(64, share=2).cuda(), torch.randn(4, 14, 14, 64, device="cuda")
    try:
        with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
            before = model(x)
            first = atm_triton.tune(model, x, progress=False)
            again = atm_triton.tune(model, x, progress=False)
            assert tuning._alike([model(x)], [before], torch.bfloat16)  # with what was tuned
        assert first.rows and all(row.tuned > 0 for row in first.rows)
        assert len(list(tmp_path.iterdir())) == 1
        assert not again.rows and again.skipped == len(first.configs) and again.configs == first.configs
    finally:
        tables.forget_tables()
