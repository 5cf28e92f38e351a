"""train/imagenet.py --swap and --teacher: a model whose layers became mixers learns the answers of the one that it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from atmnet import open_classifier
from atmnet_train import imagenet
from atmnet_train.classification.distillation import Teacher
from atmnet_train.common.errors import UsageError
from test_train_errors import make_data, train
from torch import nn

from atm_triton import ActiveTokenMixer

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "no_curves")
SWAP = ("--swap", "stages.*.conv_dw")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def teacher(images: Path) -> Path:
    output = images.parent / "teacher"
    train(images, output)
    return output


def test_the_loss_is_the_divergence_from_the_teacher() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 5)
    teacher = Teacher(network, 2.0, Accelerator(cpu=True))
    images, logits = torch.randn(4, 3), torch.randn(4, 5, requires_grad=True)
    p, q = (network(images) / 2).softmax(-1), (logits / 2).softmax(-1)
    torch.testing.assert_close(teacher.loss(logits, images), 4 * (p * (p / q).log()).sum(-1).mean())
    assert teacher.loss(network(images), images).item() == pytest.approx(0, abs=1e-6)
    teacher.loss(logits, images).backward()
    assert logits.grad.any() and network.weight.grad is None


def test_a_swapped_model_learns_from_what_it_was(images: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    loss = Teacher.loss
    monkeypatch.setattr(Teacher, "loss", lambda self, logits, seen: asked.append(len(seen)) or loss(self, logits, seen))
    train(images, tmp_path / "run", "--init-from", teacher, *SWAP, "--teacher", teacher)
    assert asked == [4, 4, 4]

    model = open_classifier(tmp_path / "run")  # which says what was swapped
    assert sum(isinstance(module, ActiveTokenMixer) for module in model.modules()) > 0
    imagenet.main(["--eval", str(tmp_path / "run"), "--data-dir", str(images), "--workers", "0", "--output", str(tmp_path / "eval")])
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["images"] == 12

    train(images, tmp_path / "more", "--init-from", tmp_path / "run", *SWAP)
    with pytest.raises(UsageError, match=r"was trained with --swap stages.\*.conv_dw: give the same, not None"):
        train(images, tmp_path / "other", "--init-from", tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--swap nothing", "--swap nothing: .*no module that matches 'nothing'"),
        ("--swap stem.0", r"--swap stem.0 changes nothing: stem.0 \(Conv2d\) is left: stride"),
        ("--teacher nowhere", "--teacher nowhere: there is no such checkpoint, nor such a model of timm"),
        ("--teacher test_convnext --temperature 0", "--temperature 0.0: it must be at least 0.01"),
    ],
)
def test_what_cannot_be(flags: str, says: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        train(images, tmp_path / "run", *flags.split())


def test_teachers_of_other_classes_and_images(images: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = make_data(tmp_path / "more", ("cat", "dog", "eel"))
    with pytest.raises(UsageError, match="knows 2 classes, the data has 3"):
        train(more, tmp_path / "run", "--teacher", teacher)
    others = make_data(tmp_path / "others", ("ant", "bee"))
    with pytest.raises(UsageError, match=r"knows other classes \(cat, dog\) than the data \(ant, bee\)"):
        train(others, tmp_path / "run", "--teacher", teacher)
    config = {"mean": (0.1, 0.1, 0.1), "std": (0.1, 0.1, 0.1)}
    other = SimpleNamespace(num_classes=2, pretrained_cfg=config)
    monkeypatch.setattr("atmnet_train.classification.distillation.read_teacher", lambda name: other)
    with pytest.raises(UsageError, match=r"takes images of mean \(0.1, 0.1, 0.1\), the model of"):
        train(images, tmp_path / "run", "--teacher", teacher)
