"""The benchmark: that it runs through, and that it times nothing that is wrong."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import about
import atmnet
import figures
import first_step
import limits
import networks
import operators
import pytest
import report
import run
import targets
import timing
import timm
import torch
from jobs import Job
from limits import Ceilings, Tokens
from published import published

from atm_triton import testing
from atm_triton.tuning import tables

CPU = torch.device("cpu")
CEILINGS = Ceilings(1e10, 1e11)


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")(test))


@timm.models.register_model
def tiny_bench_test(pretrained: bool = False, **kwargs) -> atmnet.ATMNet:
    kwargs = {name: value for name, value in kwargs.items() if not name.startswith(("pretrained", "cache"))}
    return atmnet.ATMNet(depths=(1, 1, 1, 1), dims=(16, 16, 16, 16), **kwargs)


@timm.models.register_model
def swin_bench_test(pretrained: bool = False, **kwargs) -> torch.nn.Module:
    kwargs = {name: kwargs[name] for name in ("img_size", "drop_path_rate")}
    return timm.create_model("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1), num_heads=(1, 1), **kwargs)


@pytest.fixture
def no_compiler(monkeypatch):
    """Graphs are taken, and run as they are; beside small caches, and against small networks."""
    monkeypatch.setattr(timing, "CACHE", 2**20)
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda target, mode=None, backend="eager", **how: compiled(target, backend=backend, **how))
    for title, name in zip(networks.OTHERS, ("swin_bench_test", "test_convnext"), strict=True):
        monkeypatch.setitem(networks.OTHERS, title, name)


@pytest.fixture
def known_ceilings(monkeypatch):
    """Ceilings that need not be measured, which takes seconds, as test_runs_through does."""
    monkeypatch.setattr(limits, "measure_ceilings", lambda *_: CEILINGS)


# ---- the clock


def test_steps_take_turns_in_any_order(monkeypatch):
    monkeypatch.setattr(timing, "CACHE", 2**20)
    order, failed = [], {}

    def ill():
        raise torch.OutOfMemoryError("too large")

    steps = {name: functools.partial(order.append, name) for name in "abc"}
    times = timing.quantiles(steps | {"ill": ill}, CPU, 0, failed)
    assert list(times) == ["a", "b", "c"] and failed == {"ill": "out of memory"}
    turns = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert len(turns) == timing.WARM_UP + timing.TURNS and all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(map(tuple, turns))) > 1


# ---- the whole program


def assert_figures(rows: list[targets.Row]) -> None:
    """Check all that is derived from a median."""
    layers = {operator.name: operator.layer for operator in operators.OPERATORS}
    same = functools.partial(pytest.approx, rel=1e-4)  # of five digits
    for row in [row for row in rows if row["section"] != "ceiling"]:
        dtype, backward = getattr(torch, row["dtype"]), row["what"] in ("training step", "forward+backward")
        if row["section"] == "operator":
            parts = [layers[row["name"]](Tokens(*map(int, re.split("x|/G", row["shape"]))))]
        else:
            assert row["images_per_s"] == same(1e3 * int(row["batch"]) / row["p50_ms"])
            size = tuple(map(int, row["shape"].split("x")))
            network = limits.network(limits.on_meta(row["name"]), int(row["batch"]), size)
            parts = [part for layers in network.values() for part in layers]
        if row["implementation"] in networks.OTHERS:
            assert row["share_of_limit"] is None
            continue
        work = limits.total(parts, dtype.itemsize, backward)
        limit = limits.limit(parts, dtype.itemsize, backward, run.ceilings_in(rows, dtype))
        assert row["gb_per_s"] == same(work.bytes / row["p50_ms"] / 1e6)
        assert row["tflop_per_s"] == same(work.flops / row["p50_ms"] / 1e9)
        assert row["limit_ms"] == same(1e3 * limit) and row["share_of_limit"] == same(1e3 * limit / row["p50_ms"])


def test_runs_through(tmp_path, monkeypatch, capsys, no_compiler):
    monkeypatch.setattr(torch, "compile", lambda target, **how: target)  # to trace all that is measured takes a minute; other tests trace
    line = ["--model", "tiny_bench_test", "--quick", "--seconds", "0", "--output", str(tmp_path)]
    assert run.main([*line, "--only", "token_mix", "--commit", "the first"]) == 0
    assert run.main([*line, "--resume"]) == 0
    (file,) = report.newest(tmp_path).values()
    rows = report.read(file)
    assert {row["name"] for row in rows} == {"", "tiny_bench_test", *(operator.name for operator in operators.OPERATORS)}
    timed = [row for row in rows if row["section"] != "ceiling"]
    assert all(0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] and row["note"] in ("", operators.SAME) for row in timed)
    assert {row["implementation"] for row in timed} == {*networks.OURS, *networks.OTHERS}
    assert {*networks.OURS[1:]} == {row["implementation"] for row in timed if row["name"] == "branch_fusion"}
    assert {row["shape"] for row in timed if row["name"] == "token_mix"} == {"2x8x8x16/G8", "2x16x16x16/G8"}
    assert all(row["speedup"] for row in timed if row["name"] == "token_mix")
    assert not any(row["speedup"] for row in timed if row["implementation"] in networks.OTHERS)
    assert all(row["device"] and row["torch"] and (row["model"], row["mode"]) == ("tiny_bench_test", "default") for row in rows)
    assert all((row["commit"] == "the first") == (row["name"] in ("", "token_mix")) for row in rows)
    text = file.with_suffix(".md").read_text()

    def of_ours(row):
        return row["p50_ms"] if row["implementation"] in report.LABELS else math.inf

    assert "Cost against resolution" in text and "| inference, float32, 224²: at least 2.1× published |  | not measured |" in text
    one = min((row for row in timed if row["name"] == "branch_fusion" and row["what"] == "forward"), key=of_ours)
    assert f"| branch_fusion | forward | {one['shape']} | float32 | 2 |" in text and f"{one['gb_per_s']:.4g} |" in text
    assert len(list(tmp_path.glob("*.png"))) == 3
    charts = figures.charts_of(rows, "share_of_limit")
    assert set(charts) == {"inference", "training step", "forward", "forward+backward"}
    assert sum(map(len, charts.values())) == sum(row["implementation"] in report.LABELS for row in timed)
    assert report.short_block([file]) == "Not measured yet."  # at 224 x 224

    def nothing_left(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(limits, "measure_ceilings", nothing_left)
    assert run.main([*line, "--resume"]) == 0
    assert len(report.read(file)) == len(rows)
    with pytest.raises(SystemExit, match="2"):
        run.main([*line, "--resume", "--compile-mode", "max-autotune"])
    monkeypatch.setattr(about, "device_name", lambda _: "another machine")
    with pytest.raises(SystemExit, match="2"):
        run.main([*line, "--resume"])
    assert_figures(rows)
    says = capsys.readouterr().err
    assert f"{file} is of mode default, not max-autotune" in says and "not another machine: leave --resume out" in says


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--only zzz", "--only zzz: nothing that is measured here"),
        ("--minutes 0", "--minutes 0 is too short"),
        ("--device meta", "nothing here runs on it"),
        ("--device banana", "banana is no device"),
        ("--device cuda:99", "there is no cuda:99 here"),
        ("--model nope", "nope is no ATMNet"),
        ("--model convnext_tiny", "convnext_tiny is no ATMNet"),
        ("--compile-mode fast", "invalid choice: 'fast'"),
    ],
)
def test_wrong_arguments(flags, says, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(["--quick", "--commit", "none", "--output", str(tmp_path), *flags.split()])
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_results_are_never_overwritten(tmp_path, capsys, no_compiler, known_ceilings):
    line = ["--model", "tiny_bench_test", "--quick", "--seconds", "0"]
    for more in ([], ["--resume"]):
        with pytest.raises(SystemExit, match="2"):
            run.main([*line, *more])
        assert "is for whole runs of atmnet_t in mode default: give --output FOLDER" in capsys.readouterr().err
    line += ["--output", str(tmp_path), "--only", "branch_fusion, 2x8"]
    assert run.main(line) == 0
    first = report.newest(tmp_path)["cpu"]
    before = first.read_text()
    assert run.main(line) == 0
    assert first.read_text() == before and report.newest(tmp_path)["cpu"] == first.with_stem(f"{first.stem}-2")


def test_a_job_that_fails_ends_no_other_and_is_done_again(tmp_path, monkeypatch, capsys, no_compiler, known_ceilings):
    line = ["--model", "tiny_bench_test", "--quick", "--seconds", "0", "--output", str(tmp_path), "--only", "axial_gather"]
    measure = operators.measure

    def ill(operator, *arguments):
        if operator.name == "axial_gather_w":
            raise RuntimeError("the driver is ill")
        if operator.name == "axial_gather_h":
            raise torch.OutOfMemoryError("no room for what all are compared with")
        return measure(operator, *arguments)

    monkeypatch.setattr(operators, "measure", ill)
    assert run.main(line) == 1
    printed = capsys.readouterr().out
    assert "## Failed\n\n- axial_gather_w, 2x8x8x16/G8, float32: failed: RuntimeError: the driver is ill" in printed
    assert "- axial_gather_h, 2x8x8x16/G8, float32: out of memory" in printed
    monkeypatch.setattr(operators, "measure", measure)
    monkeypatch.setattr(limits, "measure_ceilings", lambda *_: pytest.fail("measured again"))
    assert run.main([*line, "--resume"]) == 0
    names = [row["name"] for row in report.read(report.newest(tmp_path)["cpu"])]
    assert names.count("axial_gather_w") == names.count("axial_gather_h") > 0 and "the driver is ill" not in capsys.readouterr().out


def test_what_is_wrong_is_known_until_it_is_measured_again(tmp_path, known_ceilings):
    """Rows that are wrong stay so however the attempt ends."""
    file, about = tmp_path / "results.csv", dict(device="this")

    def job(title, note):
        return Job(
            title, torch.float32, lambda _: [about | dict(section="correctness", name=title, what="", implementation="eager", note=note)]
        )

    def cut(_):
        raise KeyboardInterrupt

    run.measure([job("a", "wrong: a"), job("b", "wrong: b")], CPU, file, about)
    with pytest.raises(KeyboardInterrupt):
        run.measure([job("a", "right"), Job("b", torch.float32, cut)], CPU, file, about)
    assert {row["name"]: row["note"] for row in report.read(file) if row["name"]} == {"a": "right", "b": "wrong: b"}


def test_a_lack_of_memory_is_wrong_of_ours_alone():
    row = dict(section="network", note="out of memory")
    assert [run.went_wrong(row | dict(implementation=name)) for name in networks.ALL] == [False, False, True, True, False, False]


def test_a_wrong_operator_is_not_timed(tmp_path, monkeypatch, no_compiler, known_ceilings):
    gather = testing.OPERATORS["axial_gather_w"]
    wrong = dataclasses.replace(gather, function=lambda x, offset: gather.function(x, offset + 0.01))
    monkeypatch.setitem(testing.OPERATORS, "axial_gather_w", wrong)
    line = ["--model", "tiny_bench_test", "--quick", "--seconds", "0", "--output", str(tmp_path), "--only", "axial_gather_w"]
    assert run.main(line) == 1
    rows = [row for row in report.read(report.newest(tmp_path)["cpu"]) if row["section"] != "ceiling"]
    assert rows and all(row["note"].startswith("wrong") and row["p50_ms"] is None for row in rows)


def test_a_wrong_yardstick_is_not_timed(no_compiler):
    """A hundredth off, beside gradients of less precision."""
    mixer = operators.OPERATORS[0]
    wrong = dataclasses.replace(mixer, others={"published": lambda *inputs: 1.01 * mixer.others["published"](*inputs)})
    rows = operators.measure(wrong, Tokens(2, 8, 8, 16, 8), torch.bfloat16, CPU, "default", 0, CEILINGS)
    assert {row["implementation"] for row in rows if row.get("p50_ms")} == {"plain, compiled", "eager", "compiled"}
    assert [row["note"].partition(":")[0] for row in rows if row["implementation"] == "published"] == ["wrong", "wrong"]


def test_the_same_graph_is_timed_once_and_what_is_kept_is_counted(no_compiler):
    def measured(size: int) -> dict[tuple[str, str], dict]:
        rows = operators.measure(operators.OPERATORS[0], Tokens(2, size, size, 16, 8), torch.float32, CPU, "default", 0, CEILINGS)
        return {(row["what"], row["implementation"]): row for row in rows}

    for size, alike in ((4, True), (8, False)):  # by atm_triton/ops/token_mix/strategy.py
        rows = measured(size)
        for what in ("forward", "forward+backward"):
            ours, plain = rows[what, "compiled"], rows[what, "plain, compiled"]
            assert (ours["note"] == operators.SAME) == alike == (ours["p50_ms"] == plain["p50_ms"])
        kept = {name: row["kept_mib"] for (what, name), row in rows.items() if what == "forward+backward"}
        means = 2 * 3 * 16 * 4 / 2**20
        assert kept["eager"] == means and kept["plain, compiled"] > 2 * size**2 * 16 * 4 / 2**20  # more than the tokens once
        assert rows["forward", "eager"]["kept_mib"] is None


def test_a_wrong_network_is_not_timed(monkeypatch, no_compiler):
    case = networks.Case("inference", (32, 32), 1, torch.float32, ("published", "eager"))

    def broken(model):
        copy = published(model)
        copy.stem.bias.data += 0.01
        return copy

    monkeypatch.setattr(networks, "published", broken)
    eager, row = networks.measure("tiny_bench_test", case, CPU, "default", 0, CEILINGS)
    assert row["implementation"] == "published" and row["note"].startswith("wrong") and "p50_ms" not in row
    assert eager["p50_ms"] > 0


def test_nothing_is_timed_beside_a_wrong_network_of_ours(monkeypatch, no_compiler):
    plain = networks.plain

    def another(model):
        copy = plain(model)
        copy.stem.bias.data += 0.01
        return copy

    monkeypatch.setattr(networks, "plain", another)
    case = networks.Case("training step", (32, 32), 1, torch.float32, ("published", "compiled"))
    (row,) = networks.measure("tiny_bench_test", case, CPU, "default", 0, CEILINGS)
    assert row["implementation"] == "eager" and row["note"].startswith("wrong") and "p50_ms" not in row


def test_a_wrong_compiled_network_is_not_timed(monkeypatch, no_compiler):
    case = networks.Case("inference", (32, 32), 1, torch.float32, ("published", "compiled"))

    class Wrong(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x) + 0.01

    monkeypatch.setattr(torch, "compile", lambda model, **how: Wrong(model))
    published, compiled = networks.measure("tiny_bench_test", case, CPU, "default", 0, CEILINGS)
    assert published["p50_ms"] > 0 and compiled["note"].startswith("wrong") and "p50_ms" not in compiled


def test_what_cannot_run_does_not_end_the_others(monkeypatch, no_compiler):
    case = networks.Case("training step", (32, 32), 1, torch.float32, ("eager", "compiled"))
    train = networks._training

    def too_large(model, images):
        if isinstance(model, torch._dynamo.OptimizedModule):
            raise torch.OutOfMemoryError("too large")
        train(model, images)

    monkeypatch.setattr(networks, "_training", too_large)
    eager, compiled = networks.measure("tiny_bench_test", case, CPU, "default", 0, CEILINGS)
    assert eager["p50_ms"] > 0 and compiled["note"] == "out of memory"


@pytest.mark.parametrize("size", [(384, 384), (512, 2048), (800, 1280)])
def test_others_take_every_size(size):
    for name in networks.OTHERS.values():
        model = networks.create(name, networks.Case("inference", size, 1, torch.float32), torch.device("meta"))
        assert model(torch.empty(1, 3, *size, device="meta")).shape == (1, 1000)


def test_gpu_plan():
    """Jobs about the targets come first; every network runs all that it is compared with, and every title is there once."""
    jobs = run.plan(run.build_parser().parse_args(["--device", "cuda"]))
    titles = [job.title for job in jobs]
    assert len(set(titles)) == len(titles)
    first = ["token_mix"] * 4 + ["network, inference", "network, training step", "first step", "network, inference, 800x1280"]
    assert all(title.startswith(beginning) for title, beginning in zip(titles, first, strict=False))
    assert all("bfloat16" in title or title == "first step" for title in titles[:8])
    cases = [job.run.args[1] for job in jobs if job.title.startswith("network")]
    assert len(cases) == 2 * 4 * 2 and all(case.implementations == networks.ALL for case in cases)
    for size in ("56x56", "96x96", "128x512", "200x320"):  # stage 1
        assert sum(title.startswith("token_mix") and f"x{size}x64/" in title for title in titles) == 2


@on_gpu
def test_runs_on_a_gpu(tmp_path, no_compiler):
    line = ["--device", "cuda", "--model", "tiny_bench_test", "--quick", "--seconds", "0", "--output", str(tmp_path)]
    assert run.main([*line, "--only", "bfloat16"]) == 0
    (file,) = report.newest(tmp_path).values()
    rows = [row for row in report.read(file) if row["section"] != "ceiling"]
    assert {row["section"] for row in rows} == {"operator", "network"}
    assert all(0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] and row["peak_mib"] > 0 for row in rows)
    assert all(row["note"] == ("CUDA graph" if row["section"] == "operator" else "") for row in rows)
    assert "Peak memory, GiB:" in file.with_suffix(".md").read_text()


# ---- the first step


def test_first_step():
    assert first_step.benchmarks("atmnet_xt", "cpu") == "no tuned table"


@on_gpu
def test_first_step_with_a_tuned_table(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where a fresh process looks for it
    gpu = torch.device("cuda")
    table = tmp_path / f".cache/atm_triton/{tables.gpu_slug(gpu)}.json"
    tables.write_table(table, torch.cuda.get_device_name(gpu), {"offset_fc_fwd/1x1/C8/G4/float32": dict(BLOCK_N=16)})
    assert first_step.benchmarks("atmnet_xt", "cuda") == "0"


def test_what_a_first_step_benchmarks_is_counted(monkeypatch, capsys):
    triton = pytest.importorskip("triton")
    for name in ("do_bench", "do_bench_cudagraph"):
        monkeypatch.setattr(triton.testing, name, lambda run: run())
    monkeypatch.setattr(triton.runtime.Autotuner, "_bench", lambda tuner: None)

    class Measures(torch.nn.Linear):
        def forward(self, x):
            triton.testing.do_bench(lambda: None)
            triton.runtime.Autotuner._bench(None)
            return super().forward(x)

    monkeypatch.setattr(timm, "create_model", lambda name: Measures(224, 1))
    first_step.main("atmnet_xt", "cpu")
    assert capsys.readouterr().out == "2\n"
