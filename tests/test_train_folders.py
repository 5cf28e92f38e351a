"""Output folders, the files in them, and what a launcher says: refused before training, or told as what they are."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from atmnet_train import ade20k, coco, imagenet
from atmnet_train.common import checkpoints, engine, history
from atmnet_train.common.claim import claimed
from atmnet_train.common.errors import RunError, UsageError, explained, run_program
from atmnet_train.common.history import Table
from atmnet_train.common.stop import Stop

from atm_triton.strict_json import dumps

SmallRun = Callable[..., None]
PROGRAMS = {"imagenet": imagenet, "ade20k": ade20k, "coco": coco}
pytestmark = pytest.mark.usefixtures("fresh_accelerate", "no_curves")


def rows(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("output", ["file", "file/under", "/dev/null", "x" * 300, "a\0b", "loop", "/proc/run"])
def test_output_folders_that_are_none(program: str, output: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="no folder that can be written to.*Give another"):
        PROGRAMS[program].main(["--data-dir", "data", "--output", output])
    with pytest.raises(UsageError, match=r"--output is given without a value"):
        PROGRAMS[program].main(["--data-dir", "data", "--output", ""])


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_folder_in_use_is_refused_and_let_go_by_the_kernel(program: str, tmp_path: Path) -> None:
    code = (
        f"import sys, time\nfrom pathlib import Path\nfrom atmnet_train.common.claim import claimed\n"
        f"with claimed(Path({str(tmp_path / 'run')!r})):\n print('mine', flush=True)\n time.sleep(60)"
    )
    paths = os.pathsep.join(str(Path(__file__).parents[1] / folder) for folder in (".", "models", "train"))
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})
    try:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        with pytest.raises(UsageError, match=rf"in use by process {other.pid} on host \S+: give another"):
            PROGRAMS[program].main(["--data-dir", "data", "--output", str(tmp_path / "run")])
    finally:
        other.kill()
        other.communicate()
    with claimed(tmp_path / "run"):
        pass


def test_a_copied_process_does_not_keep_the_folder(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"):
        child = os.fork()
        if not child:
            signal.pause()
    try:
        with claimed(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with claimed(tmp_path / "run"):
        pass
    assert capsys.readouterr().out.count("cannot be locked") == 1 and not (tmp_path / "run").exists()


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "run" / "steps.csv").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"steps\.csv is in the way"), claimed(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp99"),
        ("ACCELERATE_USE_CPU", "maybe"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("ACCELERATE_DEBUG_MODE", "x"),
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_USE_MEGATRON_LM", "true"),
        ("RANK", "x"),
        ("RANK", "-5"),
        ("WORLD_SIZE", "two"),
        ("LOCAL_RANK", "x"),
        ("LOCAL_WORLD_SIZE", "many"),
    ],
)
def test_what_a_launcher_cannot_mean(
    name: str, value: str, small_run: SmallRun, two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name):
        small_run(two_classes, tmp_path / "run")


def test_a_launcher_does_not_accumulate_gradients(
    small_run: SmallRun, two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run(two_classes, tmp_path / "run")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    small_run(two_classes, tmp_path / "told")
    assert (tmp_path / "run" / "steps.csv").read_text() == (tmp_path / "told" / "steps.csv").read_text()


@pytest.mark.parametrize(
    "flags",
    [
        *("--lr inf", "--lr nan", "--lr 1e38", "--lr-base inf", "--min-lr -5", "--weight-decay 1e30", "--clip-grad -1", "--clip-grad nan"),
        *("--momentum nan", "--mixup inf", "--scale 1 0.5", "--scale nan 1", "--ratio 0 1", "--decay-epochs 0", "--layer-decay nan"),
        *("--crop-pct 0", "--workers 99999", "--model-kwargs num_classes=7", "--model-kwargs drop_rate=0 drop_rate=1"),
        *("--img-size 1", "--img-size 100000", "--color-jitter 1e9", "--drop-path 1", "--smoothing 1", "--model-ema-decay 1"),
        *("--momentum 1", "--layer-decay 9", "--layer-decay 0", "--warmup-lr -1", "--warmup-lr 1 --warmup-epochs 1"),
        *("--aa rand-mnan-n2", "--aa rand-m-5", "--aa rand-m9-mstd", "--aa rand-n0", "--aa augmix-w0", "--aa v0-inc"),
        *("--scale 1e-30 1e-30", "--ratio 1e-9 1e9", "--aug-repeats 1000000", f"--epochs {10**400}", f"--seed {2**63}"),
        *(
            f"--model-kwargs {given}"
            for given in ("in_chans=1", "drop_path_rate=.2", "drop_rate=1", "features_only=True", "checkpoint_path=x")
        ),
        *("--dataset x/y", "--dataset torch", "--input-key image"),
        *("--train-split .", "--val-split train/..", "--val-split /"),
    ],
)
def test_numbers_that_cannot_be(flags: str, small_run: SmallRun, two_classes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=flags.split()[0]):
        small_run(two_classes, tmp_path / "run", *flags.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--model-kwargs kernel_sizes=(0,0,0,0)", r"--model test_convnext cannot take 2 images of 32 x 32: "),
        ("--model-kwargs global_pool=", r"--model test_convnext global_pool= makes .* of 2 images, not 2 logits"),
        ("--model-kwargs pretrained_cfg=5", r"--model test_convnext does not take"),
        ("--model vit_tiny_patch16_224", r"--model vit_tiny_patch16_224 cannot take 2 images of 32 x 32: "),
        ("--model test_resnet -b 1 --mixup 0 --cutmix 0", r"--model test_resnet cannot take 1 image of 32 x 32: "),
    ],
)
def test_models_that_cannot_be_trained_so(flags: str, says: str, small_run: SmallRun, two_classes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        small_run(two_classes, tmp_path / "run", *flags.split())


def test_validation_images_that_are_trained_on(
    small_run: SmallRun, two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(two_classes / "val")
    (two_classes / "val").symlink_to("train")
    small_run(two_classes, tmp_path / "run", "--epochs", "1")
    assert f"{two_classes / 'val'} holds the training images too" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--eval", "--resume", "--init-from"])
def test_a_place_without_a_name(flag: str, small_run: SmallRun, two_classes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{flag} is given without a value"):
        small_run(two_classes, tmp_path / "run", flag, "")


def test_the_rate_of_an_epoch_whose_evaluation_was_killed(
    small_run: SmallRun, two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--epochs", "3", "--warmup-epochs", "1"]
    small_run(two_classes, tmp_path / "whole", *flags)
    end = engine.Engine._end_epoch

    def killed(self: engine.Engine, evaluate: Any) -> None:
        if self.progress.epoch == 1:
            raise KeyboardInterrupt
        end(self, evaluate)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine.Engine, "_end_epoch", killed)
        small_run(two_classes, tmp_path / "parts", *flags)
    small_run(two_classes, tmp_path / "parts", *flags, "--resume", "auto")
    rates = [[row[3] for row in rows(tmp_path / name / "summary.csv")] for name in ("whole", "parts")]
    assert rates[0][0] == "lr" and rates[0] == rates[1]


@pytest.mark.parametrize("when", ["_update", "_end_epoch"])
def test_a_folder_that_vanishes(when: str, small_run: SmallRun, two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(engine.Engine, when)

    def vanishing(self: engine.Engine, *args: Any) -> Any:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return real(self, *args)

    monkeypatch.setattr(engine.Engine, when, vanishing)
    with pytest.raises(RunError, match=r"cannot write .*(steps|summary)\.csv.*No such file"):
        small_run(two_classes, tmp_path / "run")


def test_tables_are_on_the_disk_before_a_checkpoint_that_knows_them(
    small_run: SmallRun, two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, sync, save = list[str](), history.sync, checkpoints.torch.save
    monkeypatch.setattr(history, "sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr(checkpoints.torch, "save", lambda *given: (done.append("last.pt"), save(*given)))
    small_run(two_classes, tmp_path / "run", "--epochs", "1")
    assert done == ["steps.csv", "summary.csv", "last.pt"] * 2


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_the_system_refuses_later_is_told_without_a_traceback(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    with pytest.raises(SystemExit, match="1"):
        run_program(main)
    assert capsys.readouterr().err == f"error: {OSError(number, os.strerror(number), 'somewhere')}.\n"


def test_a_killed_data_worker_is_not_a_full_disk(
    small_run: SmallRun, two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "DataLoader worker (pid 12) is killed by signal: Killed."
    with pytest.raises(RunError, match=r"worker \(pid 12\) is killed .*--workers"), explained():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="another"), explained():
        raise RuntimeError("another")

    def killed(*_: Any) -> None:  # PyTorch raises it wherever the main process is
        raise RuntimeError(said)

    monkeypatch.setattr(checkpoints, "torch", SimpleNamespace(save=killed))
    with pytest.raises(RunError, match=r"worker \(pid 12\) is killed") as error:
        small_run(two_classes, tmp_path / "run")
    assert "disk" not in str(error.value) and "cannot write" not in str(error.value)


def test_a_closed_terminal_asks_for_a_stop_unless_nohup_said_otherwise() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00\x01" * 50, b"a,b\n1,2\n", b"update,epoch\n" + b"9" * 200_000 + b",1\n", b'"""\n\n"']
)
def test_tables_that_are_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_bytes(content)
    table = Table(tmp_path / "steps.csv")
    table.start(lambda row: row["update"] <= 2)
    table.append({"update": 3, "epoch": 1})
    assert rows(tmp_path / "steps.csv")[-2:] == [["update", "epoch"], ["3", "1"]]


def test_json_has_no_literals_of_its_own() -> None:
    assert json.loads(dumps({"a": [math.nan, (math.inf, 1)], "b": -math.inf})) == {"a": [None, [None, 1]], "b": None}
