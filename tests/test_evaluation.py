"""What train/imagenet.py --eval measures, of checkpoints from here and from elsewhere."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import imagenet
import pytest
import timm
import torch
from common.errors import UsageError
from loaders import InStep
from PIL import Image
from timm.data import ImageNetInfo

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

PUBLISHED = [
    (r"stem\.", r"patch_embed.proj."),
    (r"stages\.(\d+)\.peg\.", r"pos_blocks.\1.proj."),
    (r"stages\.(\d+)\.downsample\.", lambda m: f"blocks.{int(m[1]) - 1}.{(2, 2, 4, 2)[int(m[1]) - 1] - 1}.downsample.proj."),
    (r"stages\.(\d+)\.blocks\.(\d+)\.offset\.norm_", r"blocks.\1.\2.offset_layer.0."),
    (r"stages\.(\d+)\.blocks\.(\d+)\.offset\.", r"blocks.\1.\2.offset_layer.1."),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mixer\.fc_", r"blocks.\1.\2.atm.atm_"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mixer\.logits\.", r"blocks.\1.\2.atm.fusion."),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mixer\.", r"blocks.\1.\2.atm."),
    (r"stages\.(\d+)\.blocks\.", r"blocks.\1."),
    (r"head\.fc\.", r"head."),
]


def published_name(name: str) -> str:
    for ours, theirs in PUBLISHED:
        renamed, found = re.subn("^" + ours, theirs, name)
        if found:
            return renamed
    return name


def test_eval_of_a_published_checkpoint_on_a_part_of_imagenet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint answers one class whatever it sees; folders numbered 0, 1, 2 would count another class as right."""
    model = timm.create_model("atmnet_xt")
    model.head.fc.weight.data.zero_()
    names = ImageNetInfo("imagenet-1k").label_names()
    weights = {}
    for name, value in model.state_dict().items():
        square = re.search(r"mixer\.fc_[hw]\.weight", name)
        weights[published_name(name)] = value[:, :, None, None] if square else value
    for answer, file in ((700, "model"), (400, "model_ema")):
        bias = torch.zeros(1000)
        bias[answer] = 1
        weights = weights | {"head.bias": bias}
        torch.save({"model": weights, file: weights}, tmp_path / f"{file}.pth")
    torch.save({key: torch.load(tmp_path / f"{key}.pth")[key] for key in ("model", "model_ema")}, tmp_path / "published.pth")
    for index, count in ((2, 3), (400, 4), (700, 1)):
        (tmp_path / "data" / "val" / names[index]).mkdir(parents=True)
        for image in range(count):
            Image.new("RGB", (40, 40), (index % 255, 20 * image, 9)).save(tmp_path / "data" / "val" / names[index] / f"{image}.JPEG")
    flags = [
        "--eval",
        str(tmp_path / "published.pth"),
        "--data-dir",
        str(tmp_path / "data"),
        "--img-size",
        "64",
        "--workers",
        "0",
        "-b",
        "3",
    ]
    with pytest.raises(UsageError, match=r"does not say which model it is: give --model"):
        imagenet.main(flags)
    for more, top1 in (([], 12.5), (["--ema"], 50.0)):
        imagenet.main([*flags, *more, "--model", "atmnet-xt", "--output", str(tmp_path / "out")])
        assert json.loads((tmp_path / "out" / "eval.json").read_text())["top1"] == top1
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
    """An accelerator among processes of which `totals` have one more batch at each step."""

    device = torch.device("cpu")

    def __init__(self, totals: list[float]) -> None:
        self.totals = iter(totals)

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return torch.tensor(next(self.totals))


def test_a_stream_that_ends_early_stays_in_step_with_the_others() -> None:
    batch = (torch.ones(4, 3, 8, 8), torch.zeros(4), [])
    given = list(InStep([batch, batch], torch.zeros(1, 3, 8, 8), Peers([2, 2, 1, 1, 0])))
    assert [images.shape[0] for images, _, _ in given] == [4, 4, 1, 1]
    assert [targets.tolist() for _, targets, _ in given[2:]] == [[-1], [-1]]
