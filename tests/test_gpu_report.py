"""make gpu-report: budgets, what is skipped and resumed, what its files say; by steps made up for it, and by a dry run."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gpu_report
import jobs
import pytest
import report
import torch
from classification.recipe import parse as parse_imagenet
from detection.recipe import parse as parse_coco
from gpu import loss_curve, measure, process, training
from gpu.steps import STEPS, Place, Step, tune, tuned
from segmentation.recipe import parse as parse_ade20k

FILES = {"report.md", "results.csv", "steps.json", "loss-curve.csv", "log.txt"}  # beside a tuned table
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


def step(name: str, code: str, seconds: float = 60, **more: object) -> Step:
    return Step(name, f"about {name}", seconds, lambda place: [sys.executable, "-c", code], **more)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., dict[str, dict]]:
    """Runs steps, and returns their records."""

    def run(*steps: Step, flags: str = "", status: int = 0) -> dict[str, dict]:
        line = ["--dry-run", "--out", str(tmp_path / "out"), "--commit", "this", *flags.split()]
        assert gpu_report.main(line, steps) == status
        return json.loads((tmp_path / "out" / "steps.json").read_text())["steps"]

    return run


@pytest.fixture(autouse=True)
def own_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def gone(number: int) -> bool:
    """A process; an orphan's end may be noted a little later."""
    for _ in range(100):
        if not os.path.exists(f"/proc/{number}") or "Z" in Path(f"/proc/{number}/stat").read_text().split()[2]:
            return True
        time.sleep(0.1)
    return False


# ---- steps


def test_every_step_has_a_record_and_a_line(made, tmp_path, capsys):
    records = made(
        step("one", "print('first'); print('42 of 42 are right')"), step("two", "import sys; print('oh'); sys.exit(3)"), status=1
    )
    assert [(record["status"], record["result"]) for record in records.values()] == [
        ("ok", "42 of 42 are right"),
        ("failed: exit status 3", "oh"),
    ]
    printed = capsys.readouterr().out
    assert "one: ok. 42 of 42 are right" in printed and "two: failed: exit status 3. oh" in printed
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| one | about one | ok |" in text and "| two | about two | failed: exit status 3 |" in text and "A dry run" in text
    assert "==== one: ok\nfirst\n42 of 42 are right" in (tmp_path / "out" / "log.txt").read_text()
    assert not list((tmp_path / "out").glob("*.tmp"))


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
LAUNCHER = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {!r}]); print(p.pid, flush=True); p.wait()"


@pytest.mark.parametrize("launcher", ["", DEAF], ids=["deaf child", "both deaf"])
def test_a_step_over_budget_is_killed_with_its_children_and_the_rest_goes_on(launcher, made, monkeypatch):
    """Though they ignore SIGTERM; what it has printed is kept."""
    monkeypatch.setattr(process, "PATIENCE", 0.5)
    slow = step("slow", launcher + LAUNCHER.format(f"{DEAF}time.sleep(99)"), seconds=1)
    records = made(slow, step("next", "print('here')", seconds=3), flags="--minutes 0.1")
    assert records["slow"]["status"] == "over budget" and records["slow"]["seconds"] < 5
    assert records["next"]["status"] == "ok" and records["next"]["result"] == "here"
    assert gone(int(records["slow"]["result"]))


def test_what_a_launcher_has_launched_has_the_time_to_end(made, tmp_path):
    """Though the launcher is gone at once."""
    mark = tmp_path / "mark"
    end = f"lambda *_: (time.sleep(0.5), open({str(mark)!r}, 'w'), exit())"
    child = f"import signal, time; signal.signal(signal.SIGTERM, {end}); time.sleep(99)"
    assert made(step("slow", LAUNCHER.format(child), seconds=1), flags="--minutes 0.02")["slow"]["status"] == "over budget"
    assert mark.exists()


def test_a_process_that_cannot_be_killed_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(process, "PATIENCE", 0.2)
    with subprocess.Popen(process.GUARD, stdin=subprocess.PIPE, process_group=0) as guard:
        stuck = subprocess.Popen(["sleep", "99"], process_group=guard.pid)
        with monkeypatch.context() as context:
            context.setattr(process.os, "killpg", lambda *_: None)
            process.end(guard, stuck)
        assert stuck.poll() is None
    stuck.wait(10)


def test_no_step_outlives_a_report_that_is_killed(tmp_path):
    code = f"""if True:
        import pathlib, sys
        from gpu import process
        process.run([sys.executable, "-c", {LAUNCHER.format(DEAF + "time.sleep(99)")!r}], pathlib.Path("log"), 99, pathlib.Path(), {{}})
    """
    path = os.pathsep.join(gpu_report.FOLDERS)
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    log = tmp_path / "log"
    for _ in range(300):
        if log.is_file() and log.read_text():
            break
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    assert gone(int(log.read_text()))


def test_what_is_not_worth_beginning_is_not_begun(made):
    records = made(step("long", "import time; time.sleep(2)", seconds=60), step("late", "", seconds=600), flags="--minutes 0.03")
    assert records["late"]["status"].startswith("not begun: ") and records["late"]["seconds"] < 1


def test_a_missing_package_is_named(made):
    records = made(step("needy", "print('never')", needs=("no-such-package", "einops")), step("next", ""))
    assert records["needy"]["status"] == "skipped: needs no-such-package" and records["next"]["status"] == "ok"


def test_resume_repeats_what_is_not_ok(made, tmp_path, capsys):
    mark = tmp_path / "mark"
    flaky = step("flaky", f"import pathlib, sys; sys.exit(not pathlib.Path({str(mark)!r}).exists())")
    counted = step("counted", f"open({str(tmp_path / 'count')!r}, 'a').write('x')")
    assert made(counted, flaky, status=1)["flaky"]["status"] == "failed: exit status 1"
    with pytest.raises(SystemExit, match="2"):
        made(counted, flaky)
    assert "holds a report already: go on with --resume" in capsys.readouterr().err
    mark.touch()
    records = made(counted, flaky, flags="--resume")
    assert list(records) == ["counted", "flaky"] and records["flaky"]["status"] == "ok"
    assert (tmp_path / "count").read_text() == "x"


def test_resume_is_for_the_same_machine(made, tmp_path, capsys):
    made(step("one", ""))
    file = tmp_path / "out" / "steps.json"
    file.write_text(file.read_text().replace('"dry_run": true', '"dry_run": false'))
    with pytest.raises(SystemExit, match="2"):
        made(step("one", ""), flags="--resume")
    assert "is of dry_run False, not True" in capsys.readouterr().err


def test_only(made):
    steps = [step(name, "") for name in "abc"]
    assert list(made(*steps, flags="--only c a")) == ["a", "c"]


def test_interrupted(tmp_path):
    """By a signal: the step that runs is ended and noted."""
    stop = step("stop", "import os, signal, time; print('so far', flush=True); os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        gpu_report.main(["--dry-run", "--out", str(tmp_path)], [stop])
    record = json.loads((tmp_path / "steps.json").read_text())["steps"]["stop"]
    assert (record["status"], record["result"]) == ("stopped", "so far")


@no_gpu
def test_without_a_gpu(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu_report.main(["--out", str(tmp_path / "out")])
    assert "there is no GPU here" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_steps_find_what_the_caller_has_put_on_the_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere/wheels")
    assert gpu_report.environment(dry=False)["PYTHONPATH"].endswith(f"tests{os.pathsep}/somewhere/wheels")


# ---- what the steps do


def test_jobs_are_in_the_order_of_importance(monkeypatch):
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
    args = parse(flags)
    assert launch[-2 - dry : len(launch) - dry] == ["--mixed_precision", "bf16"] and not args.tune
    assert args.compile == name.endswith("compile") and args.batch_size == (2 if dry else program.batch)


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


# ---- all of it


@pytest.fixture(scope="session")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu-report") / "out"
    path = os.pathsep.join(str(Path(gpu_report.ROOT, folder)) for folder in ("", "models"))
    line = [sys.executable, str(Path(gpu_report.ROOT, "bench", "gpu_report.py")), "--dry-run", "--minutes", "60", "--out", str(out)]
    log = out.parent / "log"
    status = process.run(line, log, 3600, out.parent, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    assert status == "ok", log.read_text()
    return out


@pytest.mark.exhaustive
def test_dry_run(rehearsed):
    records = json.loads((rehearsed / "steps.json").read_text())["steps"]
    statuses = {name: record["status"] for name, record in records.items()}
    assert statuses == {step.name: "ok" for step in STEPS} | {"tune": "skipped: needs a GPU"}
    assert {file.name for file in rehearsed.iterdir()} == FILES
    rows = report.read(rehearsed / "results.csv")
    assert {row["section"] for row in rows} == {"ceiling", "correctness", "operator", "network", "training"}
    assert all(row["device"] and row["torch"] and row["commit"] for row in rows)
    text = (rehearsed / "report.md").read_text()
    assert "A dry run" in text and "## Loss curve" in text and "## Training programs" in text
    assert all(f"\n| {step.name} |" in text for step in STEPS)
