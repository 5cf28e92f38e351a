"""Steps of make gpu-report, and what is read of their results."""

from __future__ import annotations

import csv

import jobs
import pytest
import report
import torch
from atmnet_train.ade20k import parse as parse_ade20k
from atmnet_train.coco import parse as parse_coco
from atmnet_train.imagenet import parse as parse_imagenet
from gpu import loss_curve, measure, training
from gpu.steps import Place, self_tested, tune, tuned


def test_a_wrong_operator_of_a_selftest_cut_short():
    log = "operator   dtype\noffset_fc   float32   ok\ntoken_mix   float32   WRONG\ntoken_mix   bfloat16   ok\n"
    assert self_tested(None, [], log) == ("token_mix float32 WRONG", True)
    assert self_tested(None, [], "all operators are right") == ("all operators are right", False)


def test_jobs_are_in_the_order_of_importance():
    bench = measure.Bench("atmnet_t", torch.device("cuda"))
    titles = {name: [job.title for job in make(bench, False)] for name, make in measure.STEPS.items()}
    assert [title.split("x")[2] for title in titles["token_mix"]] == ["14", "56", "28", "7"]
    assert len(titles["correctness"]) == 20 and all("bfloat16" in title for title in titles["correctness"])
    assert titles["networks"][:3] == [
        "network, inference, 224x224, batch 128, bfloat16, compiled",
        "network, training step, 224x224, batch 128, bfloat16, compiled",
        "network, inference, 224x224, batch 128, bfloat16, plain, compiled",
    ]
    assert len({title for some in titles.values() for title in some}) == 20 + 4 + 8 + 12


@pytest.fixture
def one_operator(monkeypatch):
    """The steps that are jobs, of token_mix alone."""
    for module, name in ((torch, "compile"), *((measure.timing, name) for name in ("CACHE", "WARM_UP", "TURNS"))):
        monkeypatch.setattr(module, name, getattr(module, name))  # which a dry run replaces
    monkeypatch.setattr(measure.run.limits, "measure_ceilings", lambda *_: measure.limits.Ceilings(1e10, 1e11))
    monkeypatch.setattr(measure, "chosen", lambda *names: jobs.chosen(*names) if names else [])


def test_measured_jobs_are_written_and_not_measured_again(one_operator, tmp_path, monkeypatch, capsys):
    line = ["--file", str(tmp_path / "results.csv"), "--commit", "this", "--dry-run"]
    assert measure.main(["correctness", *line]) == measure.main(["token_mix", *line]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 are right" in printed and "ms forward+backward, compiled: " in printed
    rows = report.read(tmp_path / "results.csv")
    assert {row["section"] for row in rows} == {"ceiling", "correctness", "operator"} and {row["commit"] for row in rows} == {"this"}
    monkeypatch.setattr(measure.operators, "check", lambda *_: pytest.fail("measured again"))
    assert measure.main(["token_mix", *line]) == 0


def test_every_speed_says_what_of(tmp_path):
    """Speeds say what of, in whichever order they were measured."""
    todo = measure.plan("networks", dry=True)[1]
    of = dict(section="network", job=todo[0].title, shape="32x32", dtype="bfloat16", batch="2")
    rows = [("training step", "compiled", 5), ("inference", "compiled", 20), ("training step", "Swin-T, compiled", 6)]
    report.write(tmp_path / "rows", [of | dict(what=what, implementation=name, images_per_s=n) for what, name, n in rows])
    said, wrong = measure.verdict(todo, tmp_path / "rows")
    assert said == "images/s: compiled: training step 5, inference 20; Swin-T, compiled: training step 6" and not wrong


def test_a_wrong_operator_fails_its_step(one_operator, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure.operators, "check", lambda *_: {"eager": "wrong: by far"})
    line = ["--file", str(tmp_path / "results.csv"), "--commit", "this", "--dry-run"]
    assert measure.main(["correctness", *line]) == 1
    assert "token_mix 2x2x2x320/G80: wrong: by far; 0 of 1 are right" in capsys.readouterr().out
    monkeypatch.undo()
    rows = report.read(tmp_path / "results.csv")
    assert [row["note"] for row in rows if row["section"] == "correctness"] == ["wrong: by far"]


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("name", list(training.PROGRAMS))
def test_programs_take_the_flags(name, dry, tmp_path):
    program, line = training.PROGRAMS[name], training.command(name, tmp_path, dry)
    launch, flags = (
        line[: line.index(next(text for text in line if text.endswith(program.file)))],
        line[len(line) - line[::-1].index("--model") - 1 :],
    )
    parse = {"imagenet.py": parse_imagenet, "coco.py": parse_coco, "ade20k.py": parse_ade20k}[program.file]
    settings = parse(flags)
    expected = ["--mixed_precision", "no", "--cpu"] if dry else ["--mixed_precision", "bf16"]  # which takes a CPU minutes
    assert launch[-len(expected) :] == expected and not settings.run.tune
    assert settings.run.compile == name.endswith("compile") and settings.data.batch_size == (2 if dry else program.batch)


def test_the_first_updates_say_nothing_of_the_speed(tmp_path):
    (tmp_path / "imagenet-run").mkdir()
    (tmp_path / "imagenet-run" / "steps.csv").write_text("update,epoch,loss,lr\n1,0,6.9,0.1\n2,0,6.5,0.1\n3,0,6")  # cut off
    row = dict.fromkeys((*report.TEXT, *report.NUMBERS)) | {"p50_ms": None}
    (found,) = training.rows(
        "imagenet", tmp_path, "1/30 loss 6.9 · 3 images/s · data wait 40%\n3/30 loss 6.5 · 4 images/s · data wait 3%", dry=False
    )
    assert "images_per_s" not in found and training.line(found) == "too short for a speed, loss 6.500 after 2 updates"
    report.write(tmp_path / "results.csv", [found])
    (row,) = report.read(tmp_path / "results.csv")
    assert "| eager |  |  | too short for a speed, loss 6.500 |" in "\n".join(report.tables([row]))


def test_what_a_run_has_left_is_read_though_it_was_cut_short(tmp_path):
    folder = tmp_path / "imagenet-run"
    folder.mkdir()
    assert training.rows("imagenet", tmp_path, "nothing yet", dry=False) == []
    (folder / "steps.csv").write_text("update,epoch,loss,lr\n1,0,6.9,0.1\n2,0,6.5,0.1\n")
    log = "10/30 loss 6.9 · 80 images/s · data wait 40% · 0:00 left\n20/30 loss 6.5 · 912 images/s · data wait 3% · 0:00 left"
    (row,) = training.rows("imagenet", tmp_path, log, dry=False)
    assert (row["images_per_s"], row["what"], row["batch"], row["implementation"]) == (912, "imagenet.py, 2 updates", 128, "eager")
    assert training.line(row) == "912 images/s, data wait 3 %, loss 6.500 after 2 updates"
    (folder / "summary.json").write_text('{"peak_memory_mib": 2048}')
    assert "2 GiB" in training.line(training.rows("imagenet", tmp_path, log, dry=False)[0])


def test_loss_curve(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    file = tmp_path / "curve.csv"
    assert loss_curve.main(["--file", str(file), "--dry-run"]) == 0
    rows = list(csv.DictReader(file.open()))
    assert list(rows[0]) == ["update", loss_curve.OURS, loss_curve.PLAIN, loss_curve.OTHER] and len(rows) == 3
    assert float(rows[2][loss_curve.OURS]) == pytest.approx(float(rows[2][loss_curve.PLAIN]), abs=1e-2)
    gaps = iter([0.2, 0.1])
    monkeypatch.setattr(loss_curve, "gap", lambda *_: next(gaps))
    assert loss_curve.main(["--file", str(file), "--dry-run"]) == 1
    printed = capsys.readouterr().out
    assert "are 0.2000 apart, those of two plain runs that differ in the seed 0.1000" in printed and "\nplain: loss " in printed


def test_a_loss_curve_cut_short_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    file, train, done = tmp_path / "curve.csv", loss_curve.losses, []

    def cut(model, seed, **how):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(seed)
        return train(model, seed, **how)

    monkeypatch.setattr(loss_curve, "losses", cut)
    with pytest.raises(KeyboardInterrupt):
        loss_curve.main(["--file", str(file), "--dry-run"])
    kept = loss_curve.read(file, 3)
    assert list(kept) == [loss_curve.OURS, loss_curve.PLAIN] and loss_curve.read(file, 4) == {}
    done.clear()
    loss_curve.main(["--file", str(file), "--dry-run"])
    assert done == [1] and loss_curve.read(file, 3).items() >= kept.items()


def test_gap_is_of_smooth_curves():
    noisy = [1 + 0.1 * (-1) ** i for i in range(40)]
    assert loss_curve.gap(noisy, [1.0] * 40) == pytest.approx(0, abs=1e-6)
    assert loss_curve.gap(noisy, [1.5] * 40) == pytest.approx(0.5)
    assert not loss_curve.gap([float("nan")] * 40, noisy) <= 1  # so that it fails


def test_a_tuning_cut_short_is_kept_and_gone_on_with(tmp_path):
    cache = tmp_path / "home" / "made-up.json"
    place = Place(tmp_path, tmp_path, False, "this", [cache, tmp_path / "shipped.json"])
    assert tuned(place, "") == [] and not place.table.exists()
    cache.parent.mkdir()
    cache.write_text("found")
    tuned(place, "")
    assert place.table == tmp_path / "made-up.json" and place.table.read_text() == "found"
    cache.unlink()
    assert tune(place)[-1] == str(place.table) and cache.read_text() == "found"
