"""Measurements of train/imagenet.py --eval, of checkpoints from here and from elsewhere."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from atmnet_train import imagenet
from atmnet_train.classification.images import Images
from atmnet_train.classification.loaders import Evaluator, InStep
from atmnet_train.common.broken import BrokenImages
from atmnet_train.common.engine import Stopped
from atmnet_train.common.errors import UsageError
from atmnet_train.common.trial import watch
from atmnet_train.imagenet import parse
from official import to_official
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn
from torch.nn.functional import one_hot

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_eval_of_a_published_checkpoint_on_a_part_of_imagenet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint answers one class whatever it sees; folders numbered 0, 1, 2 would count another class as right."""
    model = timm.create_model("atmnet_xt")
    model.head.fc.weight.data.zero_()
    names = ImageNetInfo("imagenet-1k").label_names()
    weights = to_official(model)
    answers = {"model": 700, "model_ema": 400}
    content = {key: weights | {"head.bias": one_hot(torch.tensor(answer), 1000).float()} for key, answer in answers.items()}
    torch.save(content, tmp_path / "published.pth")
    for index, count in ((2, 3), (400, 4), (700, 1)):
        (tmp_path / "data" / "val" / names[index]).mkdir(parents=True)
        for image in range(count):
            Image.new("RGB", (40, 40), (index % 255, 20 * image, 9)).save(tmp_path / "data" / "val" / names[index] / f"{image}.JPEG")
    flags = ["--eval", str(tmp_path / "published.pth"), "--data-dir", str(tmp_path / "data")]
    flags += ["--img-size", "64", "--workers", "0", "-b", "3"]
    with pytest.raises(UsageError, match=r"does not say which model it is: give --model"):
        imagenet.main(flags)
    torch.save(content | {"args": argparse.Namespace(model="ActivexTiny")}, tmp_path / "published.pth")
    with pytest.raises(UsageError, match=r"holds atmnet_xt, not --model atmnet_t"):
        imagenet.main([*flags, "--model", "atmnet-t"])
    for more, top1 in (([], 50.0), (["--no-ema"], 12.5), (["--ema"], 50.0)):  # the paper's accuracy is that of the averaged weights
        imagenet.main([*flags, *more, "--output", str(tmp_path / "out")])
        report = json.loads((tmp_path / "out" / "eval.json").read_text())
        assert (report["model"], report["top1"], report["ema"]) == ("atmnet_xt", top1, more != ["--no-ema"])
        assert f"top-1 {top1:.3f}" in capsys.readouterr().out
    (tmp_path / "data" / "val" / names[2]).rename(tmp_path / "data" / "val" / "goldfish")
    with pytest.raises(UsageError, match=r"3 class folders .*1000 classes and does not name them: which is which cannot be told"):
        imagenet.main([*flags, "--model", "atmnet-xt"])


def test_an_evaluation_is_as_the_checkpoint_was_trained(small_run: Callable[..., None], two_classes: Path, tmp_path: Path) -> None:
    small_run(two_classes, tmp_path / "run", "--model-kwargs", "ls_init_value=None", "--crop-pct", "1", "--interpolation", "random")
    evaluate = ["--eval", str(tmp_path / "run"), "--data-dir", str(two_classes), "--workers", "0", "--output", str(tmp_path / "run")]
    imagenet.main(evaluate)
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    last = json.loads((tmp_path / "run" / "summary.json").read_text())["best"]["top1"]["value"]
    assert (report["crop_pct"], report["img_size"], report["top1"]) == (1, 32, last)
    imagenet.main([*evaluate, "--crop-pct", "0.5", "--img-size", "64"])
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert (report["crop_pct"], report["img_size"]) == (0.5, 64)


class Peers:
    """An accelerator among other processes, of which so many have one more batch at each step."""

    device = torch.device("cpu")

    def __init__(self, others: list[float]) -> None:
        self.others = iter(others)

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        return tensor + next(self.others)


def test_a_stream_that_ends_early_stays_in_step_with_the_others() -> None:
    batch = ((torch.ones(4, 3, 8, 8), torch.zeros(4)), [])
    given = list(InStep([batch, batch], torch.zeros(1, 3, 8, 8), Peers([1, 0, 2, 1, 0])))
    assert [images.shape[0] for (images, _), _ in given] == [4, 4, 1, 1]
    assert [targets.tolist() for (_, targets), _ in given[2:]] == [[-1], [-1]]


def test_an_evaluation_can_be_stopped(fresh_accelerate: None) -> None:
    images = Images([(Image.new("RGB", (32, 32)), 0)] * 50, None)
    settings = parse(["--batch-size", "2", "--img-size", "32", "--workers", "0"])
    accelerator = Accelerator(cpu=True)
    evaluator = Evaluator(images, settings, accelerator, (0.5,) * 3, (0.5,) * 3, BrokenImages(0, 50))
    seen: list[int] = []

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return x.mean((2, 3))

    def check_stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        evaluator({"": Model()}, check_stop)
    assert 0 < sum(seen) < 50
    seen.clear()
    assert evaluator({"": Model()})[""]["images"] == sum(seen) == 50


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
@pytest.mark.parametrize("kind", ["logits", "maps"])
def test_outputs_are_watched(kind: str, value: float) -> None:
    module, broken = (nn.Identity() if kind == "logits" else Maps()), torch.zeros((), dtype=torch.bool)
    watch(module, broken)
    for some in (value, 0.0):
        module(torch.full((2, 3), some))
    assert bool(broken) is not math.isfinite(value)


class Maps(nn.Module):
    """As a detector's pyramid has them."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"p2": torch.zeros(1), "p3": x}
