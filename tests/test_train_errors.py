"""Refusals of the training program, before long work, and what it says: the values met and what to do."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from atmnet_train import imagenet
from atmnet_train.classification import optimization
from atmnet_train.common import checkpoints
from atmnet_train.common.errors import RunError, UsageError, run_program
from atmnet_train.common.weights import read_weights
from PIL import Image

TINY = (
    "--model test_convnext --img-size 32 --sched-on-updates --batch-size 4 --workers 0 --report-to none "
    "--epochs 1 --warmup-epochs 0 --cooldown-epochs 0 --lr 1e-3"
)


pytestmark = pytest.mark.usefixtures("fresh_accelerate", "no_curves")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


def make_data(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 6) -> Path:
    for split in ("train", "val"):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                Image.new("RGB", (36, 36), (100 * number, 10 * image, 60)).save(folder / f"{image}.jpg")
    return root


def train(data: Path, output: Path, *flags: object) -> None:
    imagenet.main([*TINY.split(), "--data-dir", str(data), "--output", str(output), *map(str, flags)])


def test_no_data() -> None:
    with pytest.raises(UsageError, match=r"--data-dir DIR.*make demo"):
        imagenet.main([])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--color-jitter -1", r"--color-jitter -1.0: it must be between 0 and 1"),
        ("--seed -1", r"--seed -1: it must be at least 0"),
        ("--aa nonsense", r"--aa nonsense: timm knows no such augmentation"),
        ("--opt nope", r"--opt nope: .*not found"),
        ("--batch-size 5", r"--batch-size 5: mixup pairs"),
        ("--epochs 3 --warmup-epochs 5", r"--warmup-epochs 5 leaves nothing of --epochs 3"),
        ("--reprob 1.5", r"--reprob 1.5: it must be between 0 and 1"),
        ("--finetune", r"--finetune .* --init-from"),
        ("--lr 1e-7", r"1e-07 .* --min-lr"),
        ("--batch-size 512", r"12 training images do not fill one update of 512"),
        ("--model resnet_of_nothing", r"timm knows no such model"),
        ("--model atmnet-x", r"atmnet_x: timm knows no such model; it knows atmnet_"),
        ("--model-kwargs wings=2", r"does not take .*wings"),
        ("--num-classes 1", r"2 classes \(cat, dog\), --num-classes only 1"),
        ("--report-to aim", r"aim: that package is not installed"),
        ("--mixed-precision fp16", r"fp16 does not train on a CPU"),
        ("--resume nowhere", r"--resume nowhere: there is no nowhere"),
        ("--init-from nowhere", r"there is no nowhere"),
        ("--dataset torch/nothing", r"--dataset torch/nothing, split train: "),
    ],
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 is refused on CPUs only")
def test_flags_that_cannot_work(flags: str, says: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        train(data, tmp_path / "run", *flags.split())
    assert not (tmp_path / "run" / "last.pt").exists()


def test_folders_that_cannot_work(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing_here: there is no such folder"):
        train(tmp_path / "nothing_here", tmp_path / "run")
    with pytest.raises(UsageError, match=r"has no folder train or training; it holds cat, dog"):
        train(data / "train", tmp_path / "run")
    (data / "train" / "zebra").mkdir()
    with pytest.raises(UsageError, match=r"1 class folders .* hold no images .*zebra"):
        train(data, tmp_path / "run")
    (data / "train" / "zebra").rmdir()
    (data / "val" / "yak").mkdir()
    with pytest.raises(UsageError, match=r"1 classes that training does not know: yak"):
        train(data, tmp_path / "run")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"has no class folders"):
        train(tmp_path / "bare", tmp_path / "run")


def test_broken_images_are_named_and_skipped_up_to_a_limit(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = data / "train" / "cat" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    (data / "val" / "dog" / "1.jpg").write_text("not an image")
    train(data, tmp_path / "run", "--aug-repeats", 0)
    said = capsys.readouterr().out
    assert said.count(f"skipped: cannot read {broken}") == 1
    assert said.count(f"skipped: cannot read {data / 'val' / 'dog' / '1.jpg'}") == 1
    assert ",11," in (tmp_path / "run" / "summary.csv").read_text()  # the unreadable one is not counted
    with pytest.raises(RunError, match=r"1 images cannot be read, more than --max-broken 0 allows: .*3\.jpg"):
        train(data, tmp_path / "strict", "--aug-repeats", 0, "--max-broken", 0)


def test_an_output_folder_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run")
    before = (tmp_path / "run" / "last.pt").read_bytes()
    with pytest.raises(UsageError, match=r"holds a run already: go on with --resume auto"):
        train(data, tmp_path / "run")
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


def test_a_checkpoint_of_another_run(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run")
    with pytest.raises(UsageError, match=r"of another run: model test_convnext -> test_convnext2"):
        train(data, tmp_path / "other", "--resume", tmp_path / "run", "--model", "test_convnext2")
    with pytest.raises(UsageError, match=r"does not fit this ConvNeXt:\n  unexpected: .*(.*\n)*.*and \d+ more"):
        train(data, tmp_path / "other", "--init-from", tmp_path / "run", "--model", "test_convnext3")
    with pytest.raises(UsageError, match=r"trained with EMA: give the same --model-ema-decay"):
        train(data, tmp_path / "other", "--resume", tmp_path / "run", "--model-ema-decay", 0)
    with pytest.raises(UsageError, match=r"another optimizer: opt adamw -> sgd"):
        train(data, tmp_path / "other", "--resume", tmp_path / "run", "--opt", "sgd")
    three = make_data(tmp_path / "three", ("cat", "dog", "emu"))
    with pytest.raises(UsageError, match=r"of another run: num_classes 2 -> 3"):
        train(three, tmp_path / "other", "--resume", tmp_path / "run")
    for given, says in (
        (tmp_path / "run", r"1 classes that training does not know: emu"),
        (data / "train" / "cat" / "1.jpg", r"is not a checkpoint"),
    ):
        with pytest.raises(UsageError, match=says):
            imagenet.main(["--eval", str(given), "--data-dir", str(three), "--model", "test_convnext", "--workers", "0"])


def test_the_middle_of_an_epoch_keeps_its_order(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted_run(data, tmp_path / "run")
    with pytest.raises(UsageError, match=r"middle of an epoch.*global batch 4 -> 2"):
        train(data, tmp_path / "run", "--resume", "auto", "--batch-size", 2)
    with pytest.raises(UsageError, match=r"middle of an epoch.*seed 42 -> 1"):
        train(data, tmp_path / "run", "--resume", "auto", "--seed", 1)


def interrupted_run(data: Path, output: Path) -> None:
    """Saves after the first update and breaks off in the second."""
    loss = optimization.SoftTargetCrossEntropy.forward
    calls = []

    def breaking(self, x, target):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss(self, x, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimization.SoftTargetCrossEntropy, "forward", breaking)
        train(data, output, "--checkpoint-steps", 1)


def test_a_loss_that_is_not_finite_stops_the_run_and_loses_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = optimization.SoftTargetCrossEntropy.forward
    calls: list[int] = []

    def diverging(self, x, target):
        calls.append(1)
        return loss(self, x, target) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(optimization.SoftTargetCrossEntropy, "forward", diverging)
    with pytest.raises(RunError, match=r"loss of update 3 \(epoch 1\) is nan; .*last.pt keeps the state after update 2"):
        train(data, tmp_path / "run", "--checkpoint-steps", 1)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["progress"]["updates"] == 2 and all(value.isfinite().all() for value in state["model"].values())


def test_a_run_that_failed_says_so_in_its_summary(data: Path, tmp_path: Path) -> None:
    (data / "train" / "cat" / "3.jpg").write_text("not an image")
    with pytest.raises(RunError, match=r"1 images cannot be read"):
        train(data, tmp_path / "run", "--aug-repeats", 0, "--max-broken", 0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not summary["finished"] and "3.jpg" in summary["error"] and len(summary["unreadable"]) == 1


def test_files_that_hold_no_weights(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    no_weights = "no weights under 'model' or 'state_dict'; it has model, epoch"
    for content, says in (([1, 2], "holds a list"), ({"model": None, "epoch": 3}, no_weights)):
        torch.save(content, path)
        with pytest.raises(UsageError, match=rf"some\.pth (has )?{says}"):
            imagenet.main(["--eval", str(path), "--data-dir", str(data)])


def test_no_image_can_be_read(data: Path, tmp_path: Path) -> None:
    for path in (data / "val").rglob("*.jpg"):
        path.unlink() if path.stem == "0" else path.write_text("not an image")
    with pytest.raises(RunError, match=r"none of the 10 validation images could be read"):
        train(data, tmp_path / "first", "--aug-repeats", 0)
    for path in (data / "train").rglob("*.jpg"):
        path.write_text("not an image")
    with pytest.raises(RunError, match=r"none of the 12 images can be read"):
        train(data, tmp_path / "second", "--aug-repeats", 0)


def test_weights_that_are_not_finite_are_not_saved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, closure=None: (step(self), self.param_groups[0]["params"][0].data.fill_(math.inf))
    )
    with pytest.raises(RunError, match=r"after update 1 these weights are no longer finite: .*They are not saved"):
        train(data, tmp_path / "run", "--opt", "sgd", "--checkpoint-steps", 1)
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_full_disk_leaves_the_previous_checkpoint(fault: Exception, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save
    calls: list[int] = []

    def filling(state, file):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half a checkpoint")
            raise fault
        save(state, file)

    monkeypatch.setattr(checkpoints.torch, "save", filling)
    with pytest.raises(RunError, match=r"cannot write .*last.pt: .*last.pt there is still the previous one.*--resume"):
        train(data, tmp_path / "run", "--checkpoint-steps", 1)
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["progress"]["updates"] == 1
    assert not list((tmp_path / "run").glob("*.partial*"))


def test_too_little_room_is_said_before_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(UsageError, match=r"has 1 MiB free; the checkpoints need about \d+ MiB"):
        train(data, tmp_path / "run")


def test_a_disk_that_is_full_for_any_other_file(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        with open("/dev/full", "w", buffering=1) as file:
            file.write("a line of steps.csv\n")

    with pytest.raises(SystemExit, match="1"):
        run_program(main)
    assert "error: the disk is full: [Errno 28]" in capsys.readouterr().err


def test_resume_of_another_run_does_not_overwrite(tmp_path):
    for name in ("here", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pt").write_bytes(b"")
    with pytest.raises(UsageError, match="holds a run already"):
        imagenet.main(["--data-dir", str(tmp_path), "--output", str(tmp_path / "here"), "--resume", str(tmp_path / "other")])


def test_one_set_of_weights_has_no_average(tmp_path):
    (tmp_path / "best.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="leave --ema out"):
        read_weights(str(tmp_path / "best.safetensors"), ema=True)
