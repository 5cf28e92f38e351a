"""The benchmark: what it takes for the limit, that it runs through, and that it times nothing that is wrong."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import atmnet
import first_step
import limits
import networks
import operators
import pytest
import report
import run
import targets
import timm
import torch
from atmnet.profile import LAYER_NORM_COST, macs
from limits import Ceilings, Tokens
from published import published

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
CEILINGS = Ceilings(1e10, 1e11)


@timm.models.register_model
def tiny_bench_test(pretrained: bool = False, **kwargs) -> atmnet.ATMNet:
    kwargs = {name: value for name, value in kwargs.items() if not name.startswith(("pretrained", "cache"))}
    return atmnet.ATMNet(depths=(1, 1, 1, 1), dims=(16, 16, 16, 16), **kwargs)


@pytest.fixture
def no_compiler(monkeypatch):
    """Graphs are taken, and run as they are."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda target, mode=None, **how: compiled(target, backend="eager", **how))


# ---- limits


def test_stage_1():
    with torch.device("meta"):
        first = limits.stages(timm.create_model("atmnet_t"), 128, (224, 224))[0]
    assert first == Tokens(128, 56, 56, 64, 32) and first.B * first.H * first.W == 401_408
    assert 2 * first.size == 2 * first.offsets == 51_380_224
    layer = limits.token_mix(first)
    assert layer.forward(2).bytes == 3 * 51_380_224 + 2 * layer.weights
    assert layer.backward(2).bytes == 5 * 51_380_224 + 4 * layer.weights


@pytest.mark.parametrize("size", [(224, 224), (230, 353)])
@pytest.mark.parametrize("name", ["atmnet_xt", "atmnet_t", "atmnet_b"])
def test_operations_are_the_profile(name, size):
    """But for what the paper counts of norms, and what folding the projection saves."""
    with torch.device("meta"):
        model = timm.create_model(name)
    layers = [layer for part in limits.network(model, 1, size).values() for layer in part]
    norms = saved = 0
    for stage, shape in zip(model.stages, limits.stages(model, 1, size), strict=True):
        norms += sum(2 + (block.offset is not None) for block in stage.blocks) * shape.size
        saved += len(stage.blocks) * max(0, shape.H * shape.W - 3 * shape.C) * shape.C**2
    norms += shape.size
    counted = limits.total(layers, 4, backward=False).flops // 2
    assert counted + saved + LAYER_NORM_COST * norms == macs(model, size)


def test_weights_are_all_there():
    model = timm.create_model("atmnet_xt")
    layers = {layer.name: layer for part in limits.network(model, 1, (224, 224)).values() for layer in part}
    assert layers["classifier"].weights == sum(p.numel() for p in model.head.parameters())
    for shape, stage in zip(limits.stages(model, 1, (224, 224)), model.stages, strict=True):
        block = stage.blocks[0]
        assert limits.token_mix(shape).weights == sum(p.numel() for p in block.mixer.parameters())
        assert limits.offset_fc(shape).weights == sum(p.numel() for p in block.offset.parameters())


def test_limit_is_the_larger_of_both():
    layer = limits.offset_fc(Tokens(1, 8, 8, 16, 4))
    work = layer.forward(4)
    assert limits.limit([layer], 4, False, Ceilings(1.0, math.inf)) == work.bytes
    assert limits.limit([layer], 4, False, Ceilings(math.inf, 1.0)) == work.flops
    assert limits.limit([layer, layer], 4, True, Ceilings(math.inf, 1.0)) == 6 * work.flops


def test_limits_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["limits.py", "--model", "atmnet-t", "--bandwidth", "3000", "--flops", "700"])
    limits.main()
    assert "401,408 tokens of 64 channels, 32 offsets per axis: x 51.4 MB, offsets 51.4 MB, output 51.4 MB" in capsys.readouterr().out


# ---- the whole program


def test_runs_through(tmp_path, monkeypatch, no_compiler):
    torch.set_num_threads(2)
    line = ["--model", "tiny_bench_test", "--quick", "--seconds", "0", "--output", str(tmp_path)]
    assert run.main([*line, "--only", "token_mix"]) == 0
    assert run.main([*line, "--resume"]) == 0
    (file,) = report.newest(tmp_path)
    rows = report.read(file)
    assert {row["name"] for row in rows} == {"", "tiny_bench_test", *(operator.name for operator in operators.OPERATORS)}
    timed = [row for row in rows if row["section"] != "ceiling"]
    assert all(0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] and not row["note"] for row in timed)
    assert {row["implementation"] for row in timed} == {*networks.OURS, *networks.OTHERS}
    assert all(row["speedup"] for row in timed if row["name"] == "token_mix")
    assert not any(row["speedup"] for row in timed if row["implementation"] in networks.OTHERS)
    assert all(row["share_of_limit"] > 0 for row in timed if row["implementation"] in networks.OURS)
    assert all(row["device"] and row["torch"] and row["commit"] for row in rows)
    text = file.with_suffix(".md").read_text()
    assert "Cost against resolution" in text and "| inference, float32, 224²: at least 2.5× published |  | not measured |" in text
    assert len(list(tmp_path.glob("*.png"))) == 3
    charts = report.charts_of(rows, "share_of_limit")
    assert set(charts) == {"inference", "training step", "forward", "forward+backward"}
    assert sum(map(len, charts.values())) == sum(row["implementation"] in report.LABELS for row in timed)
    block = report.block([file])
    assert (
        "| what | dtype | published | plain, compiled | ours, eager | ours, compiled |" in block and "| training step | float32 |" in block
    )
    readme = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.with_block(readme, block) == readme.replace("old", block)

    def nothing_left(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(limits, "measure_ceilings", nothing_left)
    assert run.main([*line, "--resume"]) == 0
    assert len(report.read(file)) == len(rows)


def test_results_are_never_overwritten(tmp_path, monkeypatch, capsys, no_compiler):
    line = ["--model", "tiny_bench_test", "--quick", "--seconds", "0"]
    with pytest.raises(SystemExit, match="2"):
        run.main(line)
    assert "is for whole runs of atmnet-t in mode default: give --output FOLDER" in capsys.readouterr().err
    line += ["--output", str(tmp_path), "--only", "branch_fusion"]
    assert run.main(line) == 0
    before = next(tmp_path.glob("*.csv")).read_text()
    with pytest.raises(SystemExit, match="2"):
        run.main(line)
    assert "is there already: --resume adds what it lacks" in capsys.readouterr().err
    assert next(tmp_path.glob("*.csv")).read_text() == before


def test_a_job_that_fails_ends_no_other_and_is_done_again(tmp_path, monkeypatch, capsys, no_compiler):
    line = ["--model", "tiny_bench_test", "--quick", "--seconds", "0", "--output", str(tmp_path), "--only", "axial_gather"]
    measure = operators.measure

    def ill(operator, *arguments):
        if operator.name == "axial_gather w":
            raise RuntimeError("the driver is ill")
        return measure(operator, *arguments)

    monkeypatch.setattr(operators, "measure", ill)
    assert run.main(line) == 1
    assert "## Failed\n\n- axial_gather w, 2x8x8x16/G8, float32: failed: RuntimeError: the driver is ill" in capsys.readouterr().out
    monkeypatch.setattr(operators, "measure", measure)
    monkeypatch.setattr(limits, "measure_ceilings", lambda *_: pytest.fail("measured again"))
    assert run.main([*line, "--resume"]) == 0
    names = [row["name"] for row in report.read(report.newest(tmp_path)[0])]
    assert names.count("axial_gather w") == names.count("axial_gather h") > 0 and "the driver is ill" not in capsys.readouterr().out


def test_a_wrong_operator_is_not_timed(tmp_path, monkeypatch, no_compiler):
    gather = next(operator for operator in operators.OPERATORS if operator.name == "axial_gather w")
    wrong = dataclasses.replace(gather, function=lambda x, offset: gather.function(x, offset + 0.01))
    monkeypatch.setattr(operators, "OPERATORS", [wrong])
    line = ["--model", "tiny_bench_test", "--quick", "--seconds", "0", "--output", str(tmp_path), "--only", "axial_gather w"]
    assert run.main(line) == 1
    rows = [row for row in report.read(report.newest(tmp_path)[0]) if row["shape"].startswith("2x8x8x")]  # others are a single token
    assert rows and all(row["note"].startswith("wrong") and row["p50_ms"] is None for row in rows)


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
    """The targets' rows come first, and every title once."""
    args = run.build_parser().parse_args(["--device", "cuda"])
    titles = [job.title for job in run.plan(args)]
    assert len(set(titles)) == len(titles) == 4 * 5 * 2 + 2 * 4 * 2
    assert [title.partition(",")[0] for title in titles[:6]] == ["token_mix"] * 4 + ["network"] * 2


def gpu_rows(ours: float, memory: float = 1) -> list[targets.Row]:
    """As a GPU's results file would have them: everything takes 1 ms, and ours ``ours``."""
    blank = dict.fromkeys((*report.TEXT, *report.ABOUT), "") | dict.fromkeys(report.NUMBERS)
    rows, names = [], {"published": 1.0, "plain, compiled": 1.0, "compiled": ours}
    for shape in ("128x56x56x64/G32", "128x28x28x128/G32", "128x14x14x320/G80", "128x7x7x512/G64"):
        for what in ("forward", "forward+backward"):
            of = dict(section="operator", name="token_mix", what=what, shape=shape, dtype="bfloat16", batch="128")
            rows += [blank | of | dict(implementation=name, p50_ms=ms, share_of_limit=0.05 / ms) for name, ms in names.items()]
    for shape, batch in (("224x224", 128), ("800x1280", 6)):
        for what in ("inference", "training step"):
            of = dict(section="network", what=what, shape=shape, dtype="bfloat16", batch=str(batch), peak_mb=2)
            for name, ms in (names | dict.fromkeys(networks.OTHERS, 1.0)).items():
                rows.append(blank | of | dict(implementation=name, p50_ms=ms, images_per_s=1e3 * batch / ms))
            rows[-3]["peak_mb"] = memory
    return [*rows, blank | dict(section="first step", note="0")]


def test_gpu_targets():
    judged = targets.judge(gpu_rows(ours=0.05))
    assert len(judged) == 12 and [met for *_, met in judged] == ["yes"] * 12
    met = [met for *_, met in targets.judge(gpu_rows(ours=0.5, memory=2))]
    assert met == ["**no**"] * 7 + ["yes"] * 5
    assert "not measured" in [met for *_, met in targets.judge(gpu_rows(ours=0.5)[1:])]
    assert "published" in report.markdown(gpu_rows(ours=0.05), "gpu")


def test_first_step():
    assert first_step.benchmarks("atmnet_xt") in ("0", "no tuned table")


def test_readme_has_the_newest_figures():
    readme = (ROOT / "README.md").read_text()
    assert report.with_block(readme, report.block(report.newest(report.RESULTS))) == readme, "run: python bench/report.py"
