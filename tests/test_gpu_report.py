"""make gpu-report: budgets, what is skipped and resumed, what its files say; by steps made up for it, and by a dry run."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gpu_report
import pytest
import report
import torch
from gpu import measure, process, summary
from gpu.steps import STEPS, Step

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
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    assert not list((tmp_path / "out").glob("*.partial*"))


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
LAUNCHER = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {!r}]); print(p.pid, flush=True); p.wait()"


@pytest.mark.parametrize("launcher", ["", DEAF], ids=["deaf child", "both deaf"])
def test_a_step_over_budget_is_killed_with_its_children_and_the_rest_goes_on(launcher, made, monkeypatch):
    """Children are killed though they ignore SIGTERM; what the step has printed is kept."""
    monkeypatch.setattr(process, "PATIENCE", 0.5)
    slow = step("slow", launcher + LAUNCHER.format(f"{DEAF}time.sleep(99)"), seconds=1)
    records = made(slow, step("next", "print('here')", seconds=3), flags="--minutes 0.1")
    assert records["slow"]["status"] == "over budget" and records["slow"]["seconds"] < 5
    assert records["next"]["status"] == "ok" and records["next"]["result"] == "here"
    assert gone(int(records["slow"]["result"]))


def test_what_a_launcher_has_launched_has_the_time_to_end(made, tmp_path):
    """Children have the time though the launcher is gone at once."""
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


@pytest.mark.parametrize(("minutes", "reached"), [(6, 5), (3, 5), (14, len(STEPS))])
def test_what_is_reached_though_every_step_takes_all_its_time(minutes, reached, made, monkeypatch):
    """Steps reached in six minutes are a whole network and a training program, and in fourteen everything."""
    clock = [0.0]

    def run(step, place, budget, console):
        clock[0] += budget
        return "over budget"

    monkeypatch.setattr(gpu_report, "run", run)
    monkeypatch.setattr(gpu_report.time, "monotonic", lambda: clock[0])
    steps = [dataclasses.replace(step, needs=(), gpu=False) for step in STEPS]
    records = made(*steps, flags=f"--minutes {minutes}")
    assert [record["status"] for record in records.values()][:reached] == ["over budget"] * reached
    assert list(records)[2:5] == ["token_mix", "networks", "imagenet"] and clock[0] <= 60 * minutes


def test_what_a_step_leaves_of_its_time_is_the_next_ones(made):
    records = made(step("fast", "", seconds=30), step("next", "", seconds=30), flags="--minutes 1")
    assert records["fast"]["budget"] == 30 and 50 <= records["next"]["budget"] <= 60


def test_what_is_not_worth_beginning_is_not_begun(made):
    records = made(step("long", "import time; time.sleep(2)", seconds=60), step("late", "", seconds=600), flags="--minutes 0.03")
    assert records["late"]["status"].startswith("not begun: ") and records["late"]["seconds"] < 1


def test_no_minutes(made):
    assert made(step("one", ""), flags="--minutes 0")["one"]["status"] == "not begun: 0 s were left"


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
    assert "holds a report already (report.md, steps.json): go on with --resume" in capsys.readouterr().err
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


@pytest.mark.parametrize("name", ["results.csv", "loss-curve.csv", "log.txt", "configs.json"])
def test_old_files_are_not_taken_for_new(name, made, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).touch()
    with pytest.raises(SystemExit, match="2"):
        made(step("one", ""))
    assert f"holds a report already ({name})" in capsys.readouterr().err


@pytest.mark.parametrize("column", ["device", "torch", "triton", "commit"])
def test_resume_goes_on_with_no_others_results(column, made, tmp_path, capsys):
    """Results of others are not gone on with, though nothing else is left of the report."""
    about = gpu_report.describe(torch.device("cpu"), "atmnet_t", "default", "this")
    file = tmp_path / "out" / "results.csv"
    report.write(file, [dict(section="ceiling", what="copy", gb_per_s=1) | about | {column: "other"}])
    with pytest.raises(SystemExit, match="2"):
        made(step("one", ""), flags="--resume")
    assert f"is of {column} other, not {about[column] or 'None'}: give another --out" in capsys.readouterr().err
    report.write(file, [dict(section="ceiling", what="copy", gb_per_s=1) | about])
    assert made(step("one", ""), flags="--resume")["one"]["commit"] == "this"
    (tmp_path / "out" / "steps.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        made(step("one", ""), flags="--resume")
    assert "cannot be read" in capsys.readouterr().err


def test_results_are_never_without_what_they_are_of(made, tmp_path):
    (record,) = made(step("one", f"print(open({str(tmp_path / 'out' / 'steps.json')!r}).read())")).values()
    assert ' "steps": {}' in record["log"]


SPEED = dict(section="training", name="n", what="p, 9 updates", images_per_s=9, note="good")


BAD, GOOD, SILENT = "print('bad'); exit(3)", "print('good')", "import time; time.sleep(9)"
SLOW, SLOWER = (f"import time; print('{word}', flush=True); time.sleep(9)" for word in ("some", "more"))


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ((BAD,), None, True),
        ((BAD,), (SLOW,), True),
        ((BAD,), (SILENT, SPEED), False),
        ((BAD,), (GOOD,), False),
        ((SLOW,), (SILENT,), True),
        ((SLOW,), (SLOWER,), False),
        ((SILENT, SPEED), (SILENT, SPEED | dict(images_per_s=None)), True),
        ((SILENT, SPEED), (BAD,), False),
    ],
)
def test_resume_hides_nothing_behind_an_attempt_that_brought_nothing(before, after, kept, made, tmp_path):
    def of(code, *rows):
        return step("one", code, seconds=1, rows=lambda place, log: [*rows])

    first = made(of(*before), flags="--minutes 0.01", status=before[0] == BAD)["one"]
    again = of(*after) if after else step("one", "", needs=("no-such-package",))
    second = made(again, flags="--minutes 0.01 --resume", status=BAD in (before[0] if kept else after[0]))["one"]
    assert (second == first) == kept
    if SPEED in before:
        assert [row["images_per_s"] for row in report.read(tmp_path / "out" / "results.csv")] == [9]


def test_only(made):
    steps = [step(name, "") for name in "abc"]
    assert list(made(*steps, flags="--only c a")) == ["a", "c"]


@pytest.fixture
def hangup():
    """SIGHUP as it is without nohup, under which the tests may run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_interrupted(name, tmp_path, hangup):
    """Signals end the step that runs, which is noted."""
    stop = step("stop", f"import os, signal, time; print('so far', flush=True); os.kill(os.getppid(), signal.{name}); time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        gpu_report.main(["--dry-run", "--out", str(tmp_path)], [stop])
    record = json.loads((tmp_path / "steps.json").read_text())["steps"]["stop"]
    assert (record["status"], record["result"]) == ("stopped", "so far")


def test_under_nohup(made, hangup):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    records = made(step("one", "import os, signal; os.kill(os.getppid(), signal.SIGHUP); print('on')"))
    assert records["one"]["result"] == "on"


def test_no_error_of_the_reports_own_stops_the_next_step(made, tmp_path):
    def command(place):
        raise OSError("the disk is full")

    out = tmp_path / "out"
    bad_rows = step("rows", "", rows=lambda place, log: [float(None)])
    bad_file = step("file", f"open({str(out / 'loss-curve.csv')!r}, 'w').write('update,ours,plain\\n1,2')")
    bad_folder = step("folder", f"import os; os.remove({str(out / 'report.md')!r}); os.mkdir({str(out / 'report.md')!r})")
    mended = step("mended", f"import os; os.rmdir({str(out / 'report.md')!r})")
    records = made(Step("command", "", 9, command), bad_rows, bad_file, bad_folder, mended, status=1)
    statuses = {name: record["status"].partition(",")[0] for name, record in records.items()}
    assert statuses.pop("command") == "failed: OSError: the disk is full"
    assert statuses.pop("rows").startswith("failed: TypeError: float()") and statuses.pop("folder").startswith("failed: IsADirectoryError")
    assert statuses == {"file": "ok", "mended": "ok"}
    assert "loss-curve.csv cannot be read: TypeError" in (out / "report.md").read_text()


def test_what_is_wrong_is_not_hidden_by_what_comes_after_it(made, tmp_path):
    """A step that is cut short has failed if a row that it has written is wrong; the report shows the row."""
    (correctness,) = [step for step in STEPS if step.name == "correctness"]
    title = measure.plan("correctness", dry=True)[1][1].title
    of = dict(job=title, section="correctness", name="offset_fc", shape="2x8x8x16/G8", dtype="bfloat16", implementation="eager")

    def command(place):
        common = gpu_report.describe(torch.device("cpu"), "atmnet_xt", "default", "this")
        report.write(place.results, [of | common | dict(note="wrong: by | far")])
        return [sys.executable, "-c", "import time; time.sleep(99)"]

    cut = dataclasses.replace(correctness, command=command, seconds=1)
    (record,) = made(cut, flags="--minutes 0.01", status=1).values()
    assert record["status"] == "failed: wrong results, over budget"
    assert record["result"] == "offset_fc 2x8x8x16/G8: wrong: by | far; 0 of 5 are right"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Correctness" in text and r"| offset_fc |  | 2x8x8x16/G8 | bfloat16 | wrong: by \| far |" in text
    assert r"| offset_fc 2x8x8x16/G8: wrong: by \| far; 0 of 5 are right |" in text


def test_a_real_step(made, monkeypatch):
    """The cheapest of those that need no GPU; the others are in the dry run."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # more would wait for other tests' processes
    (record,) = made(*STEPS, flags="--only selftest").values()
    assert (record["status"], record["result"]) == ("ok", "all operators are right") and record["log"][-2].split()[0] == "token_mix_3d"


def test_the_header_is_of_what_was_measured(tmp_path):
    about = dict(device="GPU 9", torch="2", triton="3", configs="none", mode="default", date="2026-01-01", dry_run=False)
    common = about | dict(section="ceiling", what="copy", gb_per_s=1)
    del common["date"], common["dry_run"]
    report.write(tmp_path / "results.csv", [common | dict(commit="old")])
    text = summary.markdown(about | dict(commit="new"), {}, tmp_path / "results.csv", tmp_path / "none")
    assert "commit old" in text and "commit new" not in text
    assert "commit new" in summary.markdown(about | dict(commit="new"), {}, tmp_path / "none", tmp_path / "none")


@no_gpu
def test_without_a_gpu(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu_report.main(["--out", str(tmp_path / "out")])
    assert "there is no GPU here" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_steps_find_what_the_caller_has_put_on_the_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere/wheels")
    assert gpu_report.environment(dry=False)["PYTHONPATH"].endswith(f"tests{os.pathsep}/somewhere/wheels")


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
