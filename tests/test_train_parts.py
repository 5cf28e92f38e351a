"""The parts of the training programs one by one, and small runs in this process."""

import csv
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from atmnet_train import imagenet
from atmnet_train.classification import images as classification_images
from atmnet_train.classification.findings import measure
from atmnet_train.classification.images import TrainImages, class_indices
from atmnet_train.classification.loaders import patch_posterize
from atmnet_train.classification.optimization import learning_rate
from atmnet_train.common import engine, task
from atmnet_train.common.broken import BrokenImages
from atmnet_train.common.engine import updates_between_syncs
from atmnet_train.common.errors import RunError, UsageError
from atmnet_train.common.files import write_atomically
from atmnet_train.common.history import Table
from atmnet_train.common.progress import lines
from atmnet_train.common.sampling import GlobalBatchSampler, SampleKey
from atmnet_train.common.settings import flatten
from atmnet_train.common.weights import Weights, load_backbone
from atmnet_train.imagenet import parse
from PIL import Image
from timm.data import ImageNetInfo, create_transform

Batches = list[list[SampleKey]]
SmallRun = Callable[..., None]
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def shards(
    processes: int, batch: int, repeats: int = 1, epoch: int = 0, start: int = 0, length: int = 103, accumulate: int = 1
) -> list[Batches]:
    samplers = [GlobalBatchSampler(length, batch, accumulate, processes, rank, seed=7, repeats=repeats) for rank in range(processes)]
    for sampler in samplers:
        sampler.set_epoch(epoch, start)
    return [list(sampler) for sampler in samplers]


@pytest.mark.parametrize("repeats", [1, 3])
def test_global_batches_do_not_depend_on_the_number_of_processes(repeats: int) -> None:
    alone = shards(1, 16, repeats)[0]
    assert len(alone) == 6  # the last 7 of 103 images do not fill a batch
    for processes in (2, 4, 8):
        sharded = shards(processes, 16 // processes, repeats)
        for number, batch in enumerate(alone):
            assert sorted(key for rank in sharded for key in rank[number]) == batch
    assert [len(rank) for rank in shards(2, 4, accumulate=2)] == [12, 12]


def test_an_epoch_sees_every_image_once_and_each_epoch_in_another_order() -> None:
    first, second = (shards(1, 1, epoch=epoch)[0] for epoch in (0, 1))
    assert sorted(batch[0].index for batch in first) == list(range(103))
    assert [batch[0].index for batch in first] != [batch[0].index for batch in second]


def test_repeated_augmentation_gives_the_copies_to_different_processes() -> None:
    one, two, three = ([key.index for batch in rank for key in batch] for rank in shards(3, 4, repeats=3))
    assert one == two == three
    assert len(set(one)) == len(one) == 32


def test_an_epoch_entered_in_the_middle_goes_on_as_it_would_have() -> None:
    assert shards(2, 4, start=5) == [rank[5:] for rank in shards(2, 4)]


def test_updates_between_evaluations_go_on_through_endless_shuffles() -> None:
    """Epochs of 4 updates of 4, of 10 images: every image comes equally often, whatever the epochs and processes."""
    seen: list[int] = []
    for epoch in range(5):
        samplers = [GlobalBatchSampler(10, 2, 1, 2, rank, seed=7, updates_per_epoch=4) for rank in range(2)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        sharded = [list(sampler) for sampler in samplers]
        assert [len(rank) for rank in sharded] == [4, 4]
        seen += [key.index for pair in zip(*sharded, strict=True) for keys in zip(*pair, strict=True) for key in keys]
    assert len(seen) == 80
    shuffles = [seen[start : start + 10] for start in range(0, 80, 10)]
    assert all(sorted(shuffle) == list(range(10)) for shuffle in shuffles)
    assert len({tuple(shuffle) for shuffle in shuffles}) == 8


def test_the_learning_rate_follows_the_global_batch() -> None:
    def rate(line: str, global_batch: int) -> float:
        settings = parse(line.split())
        return learning_rate(settings.optimizer, settings.schedule, global_batch)

    assert rate("", 1024) == 1e-3
    assert rate("", 4096) == 4e-3
    assert rate("--lr 2e-4", 4096) == 2e-4
    assert rate("--finetune --init-from x", 512) == 5e-6
    with pytest.raises(UsageError, match=r"global batch of 8 is below --min-lr 1e-05"):
        rate("", 8)


def test_the_defaults_are_the_papers() -> None:
    args = flatten(parse([]))
    paper = {
        **{
            "opt": "adamw",
            "lr_base": 1e-3,
            "lr_base_size": 1024,
            "weight_decay": 0.05,
            "sched": "cosine",
            "min_lr": 1e-5,
            "warmup_lr": 1e-6,
        },
        **{"warmup_epochs": 5, "epochs": 300, "cooldown_epochs": 0, "aa": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4, "mixup": 0.8},
        **{"cutmix": 1.0, "smoothing": 0.1, "reprob": 0.25, "remode": "pixel", "aug_repeats": 3, "model_ema_decay": 0.99996},
        **{"crop_pct": 0.875, "interpolation": "bicubic", "img_size": 224},
    }
    assert {name: args[name] for name in paper} == paper
    finetune = parse(["--finetune", "--init-from", "x", "--epochs", "10"])
    assert (finetune.data.img_size, finetune.optimizer.lr) == (384, 5e-6)
    assert (finetune.schedule.epochs, finetune.schedule.min_lr) == (10, 5e-6)


@pytest.mark.parametrize(("name", "rate"), [("atmnet_xt", 0.1), ("atmnet_t", 0.1), ("atmnet_s", 0.2), ("atmnet_b", 0.3), ("atmnet_l", 0.3)])
def test_stochastic_depth_of_each_variant(name: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict = {}
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: made.update(kwargs, name=name))
    imagenet.build_model(parse(["--model", name.replace("_", "-")]).model, 1000)
    assert (made["name"], made["drop_path_rate"]) == (name, rate)


def test_a_sample_is_augmented_the_same_wherever_it_is_loaded() -> None:
    noise = Image.effect_noise((60, 50), 80).convert("RGB")
    transform = create_transform(32, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=1.0, re_mode="pixel")
    images = TrainImages([(noise, 3)] * 4, transform, seed=1, max_broken=0)
    first = images[SampleKey(2, 5, 1)][0]
    different = images[SampleKey(2, 6, 1)][0]
    assert torch.equal(images[SampleKey(2, 5, 1)][0], first)
    assert not torch.equal(different, first)


def test_the_strongest_posterize_does_not_end_the_run() -> None:
    transform = create_transform(32, is_training=True, auto_augment="rand-m10-n30-inc1")
    patch_posterize(transform)
    for _ in range(20):
        transform(Image.new("RGB", (40, 40), (200, 100, 50)))


def test_a_measurement_counts_known_targets_only() -> None:
    logits = torch.tensor([[9.0, 1, 2, 3, 4, 5], [1, 9, 2, 3, 4, 5], [1, 2, 3, 4, 5, 9]])
    found = measure(logits, torch.tensor([0, 0, -1]), torch.arange(3)).known()
    assert found.figures[:, 1:3].tolist() == [[1, 1], [0, 0]] and found.places.tolist() == [[0, 0, 0], [0, 1, 1]]


def test_classes_of_a_part_of_imagenet() -> None:
    names = ImageNetInfo("imagenet-1k").label_names()
    assert class_indices(names[10:20], 1000)[names[12]] == 12
    assert class_indices(names[10:20], None)[names[12]] == 2
    assert class_indices(["cat", "dog"], 1000) == {"cat": 0, "dog": 1}


def test_a_table_drops_what_will_be_run_again_and_a_line_cut_off(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text("update,loss\n1,0.5\n2,0.25\n3,0.125\n2")
    table = Table(tmp_path / "steps.csv")
    table.start(lambda row: row["update"] <= 2)
    table.append({"update": 3, "loss": 0.1})
    assert list(csv.reader((tmp_path / "steps.csv").open())) == [["update", "loss"], ["1", "0.5"], ["2", "0.25"], ["3", "0.1"]]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    with pytest.raises(RunError, match=r"cannot write .*No space left"), open("/dev/full", "wb", buffering=0) as full:

        def write(file) -> None:
            file.write(b"new")
            full.write(b"x")

        write_atomically(path, write)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_weights_of_another_number_of_classes_start_a_new_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for root, classes in (("four", "abcd"), ("two", "xy")):
        for split in ("train", "val"):
            for number, name in enumerate(classes):
                (tmp_path / root / split / name).mkdir(parents=True)
                for image in range(4):
                    Image.new("RGB", (32, 32), (60 * number, 50 * image, 9)).save(tmp_path / root / split / name / f"{image}.png")
    small = {"depths": (1, 1), "dims": (8, 16), "mlp_ratios": (2, 2), "share": (2, 4)}
    flags = ["--model", "atmnet-xt", "--model-kwargs", *(f"{name}={value}".replace(" ", "") for name, value in small.items())]
    flags += ["--img-size", "32", "-b", "4", "--workers", "0", "--report-to", "none", "--epochs", "1"]
    flags += ["--warmup-epochs", "0", "--cooldown-epochs", "0", "--lr", "1e-4"]
    imagenet.main([*flags, "--data-dir", str(tmp_path / "four"), "--output", str(tmp_path / "first")])
    imagenet.main(
        [*flags, "--data-dir", str(tmp_path / "two"), "--output", str(tmp_path / "second"), "--init-from", str(tmp_path / "first")]
    )
    assert f"starting from {tmp_path / 'first' / 'best.safetensors'}, with a new classifier" in capsys.readouterr().out
    state = torch.load(tmp_path / "second" / "last.pt", weights_only=True)
    assert state["model"]["head.fc.weight"].shape[0] == 2 and state["meta"]["classes"] == ["x", "y"]
    import atmnet

    model = atmnet.load(timm.create_model("atmnet_xt", num_classes=2, **small), tmp_path / "second" / "best.safetensors")
    assert torch.equal(model.state_dict()["stem.weight"], state["model"]["stem.weight"])
    groups = state["optimizer"]["param_groups"]
    undecayed = {name for group in groups if group["weight_decay"] == 0 for name in group["params"]}
    assert {name for name in state["model"] if ".peg." in name} <= undecayed
    assert "stages.0.blocks.0.mlp.fc1.weight" not in undecayed and "stages.0.blocks.0.mlp.fc1.bias" in undecayed


def test_a_compiled_model_keeps_clean_names_and_bf16_trains(
    small_run: SmallRun, two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    real = torch.nn.Module.compile

    def quick(self, *args, **kwargs) -> None:
        compiled.append(self)
        real(self, backend="eager")  # Inductor would take minutes here and changes no name

    monkeypatch.setattr(torch.nn.Module, "compile", quick)
    small_run(two_classes, tmp_path / "run", "--compile", "--mixed-precision", "bf16")
    assert len(compiled) == 2  # the model and its average
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    names = set(timm.create_model("test_convnext").state_dict())
    assert set(state["model"]) == set(state["ema"]) == names
    assert {value.dtype for value in state["model"].values()} == {torch.float32}


def test_ema_moves_once_per_update(small_run: SmallRun, two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    update = task.ModelEmaV3.update
    monkeypatch.setattr(task.ModelEmaV3, "update", lambda self, model, step: (steps.append(step), update(self, model, step))[1])
    small_run(two_classes, tmp_path / "run", "--grad-accum-steps", "2", "-b", "2", "--model-ema-warmup")
    assert steps == [1, 2, 3, 4]


def test_an_image_without_a_file_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Pillow's message holds the address of the stream that it could not read: another each time."""
    broken = BrokenImages(1, 10)
    for address in ("0x1", "0x2"):
        broken.note([("image number 3", f"cannot identify <BytesIO object at {address}>")])
        broken.sync()
    assert capsys.readouterr().out.count("skipped: cannot read image number 3") == 1


def test_state_in_the_parameter_groups_is_resumed(small_run: SmallRun, two_classes: Path, tmp_path: Path) -> None:
    """Lookahead counts its steps there: every sixth is another."""
    flags = ["--opt", "lookahead_adamw", "--sched", "step"]
    small_run(two_classes, tmp_path / "whole", *flags, "--epochs", "4")
    small_run(two_classes, tmp_path / "parts", *flags, "--epochs", "2")
    small_run(two_classes, tmp_path / "parts", *flags, "--epochs", "4", "--resume", "auto")
    whole, parts = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["optimizer"]["param_groups"][0]["lookahead_step"] == parts["optimizer"]["param_groups"][0]["lookahead_step"] > 6
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())


def test_a_dataset_by_name(small_run: SmallRun, two_classes: Path, tmp_path: Path) -> None:
    small_run(two_classes, tmp_path / "run", "--dataset", "torch/image_folder")
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["meta"]["classes"] == ["cat", "dog"]


class Stream(torch.utils.data.IterableDataset):
    """Samples in a stream, as timm's streamed data sets give them."""

    epochs: list[int] = []  # noqa: RUF012 (shared on purpose)

    def __init__(self) -> None:
        self.transform = None

    def set_loader_cfg(self, num_workers: int) -> None:
        pass

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return 10

    def __iter__(self):
        for number in range(9):  # one fewer than promised, as shards are cut
            yield self.transform(Image.new("RGB", (32, 32), (28 * number, 9, 9))), number % 2


def test_syncs_are_rare_where_updates_are_fast_and_seconds_apart_where_they_are_slow() -> None:
    assert [updates_between_syncs(seconds) for seconds in (0.1, 0.5, 1, 2, 9, math.inf)] == [10, 10, 5, 2, 1, 1]


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(lines([1, 2, 3], "evaluation", seconds=0)) == [1, 2, 3]
    assert capsys.readouterr().out == "evaluation 1/3\nevaluation 2/3\nevaluation 3/3\n"


def test_resumed_elsewhere_with_other_hyperparameters(
    small_run: SmallRun, two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run(two_classes, tmp_path / "first")
    here = ["--resume", str(tmp_path / "first"), "--epochs", "3", "--weight-decay", "0.5"]
    small_run(two_classes, tmp_path / "second", *here)
    assert "weight_decay 0.05 -> 0.5, epochs 2 -> 3" in capsys.readouterr().out
    groups = torch.load(tmp_path / "second" / "last.pt", weights_only=True)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0, 0.5}
    with open(tmp_path / "second" / "summary.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert (tmp_path / "second" / "best.safetensors").exists()


def test_the_rate_follows_the_epochs_when_resumed_with_another_batch(small_run: SmallRun, two_classes: Path, tmp_path: Path) -> None:
    """Two epochs of 2 updates, then one of 5: it is the last third of the schedule."""
    small_run(two_classes, tmp_path / "first", "--sched-on-updates")
    small_run(two_classes, tmp_path / "second", "--sched-on-updates", "--resume", str(tmp_path / "first"), "--epochs", "3", "-b", "2")
    with open(tmp_path / "second" / "steps.csv", newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert len(rates) == 4 + 5
    assert rates[4:] == pytest.approx([1e-5 + 0.99e-3 * (1 + math.cos(math.pi * update / 15)) / 2 for update in range(10, 15)])


def test_deterministic(small_run: SmallRun, two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        small_run(two_classes, tmp_path / "run", "--deterministic")
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_a_streamed_dataset(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification_images, "create_dataset", lambda *args, **kwargs: Stream())
    with pytest.raises(UsageError, match=r"--dataset wds/x does not tell its classes: give --num-classes"):
        small_run(tmp_path, tmp_path / "run", "--dataset", "wds/x")
    small_run(tmp_path, tmp_path / "run", "--dataset", "wds/x", "--num-classes", "2", "--aug-repeats", "0")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["updates"] == 4 and summary["last"]["val_images"] == 9 and Stream.epochs == [0, 1]


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_a_backbone_takes_a_classifiers_weights(name: str) -> None:
    small = {"depths": (1, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 1, 1, 1)} if name.startswith("swin") else {}
    model, backbone = timm.create_model(name, **small).eval(), timm.create_model(name, features_only=True, **small).eval()
    load_backbone(backbone, Weights("classifier.pt", model.state_dict()))
    size = model.pretrained_cfg["input_size"][-1]
    x = torch.randn(1, 3, size, size)
    theirs = model.forward_intermediates(x, intermediates_only=True)[-1]
    ours = backbone(x)[-1]
    torch.testing.assert_close(ours if ours.shape == theirs.shape else ours.permute(0, 3, 1, 2), theirs)
    broken = dict(model.state_dict())
    lost = next(name for name in broken if "blocks" in name or "stages" in name or "layer" in name)
    del broken[lost]
    with pytest.raises(UsageError, match=r"classifier.pt does not fit this .*:\n  missing: \S+ \[.*\]$"):
        load_backbone(backbone, Weights("classifier.pt", broken))


def test_updates_that_are_synced_together_are_recorded_as_one_by_one(
    small_run: SmallRun, two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sync rarely, as on a GPU, where a sync at every update would cost time."""
    small_run(two_classes, tmp_path / "each", "-b", "2")
    begin = engine.Engine.__init__

    def rarely(self: engine.Engine, *args: Any) -> None:
        begin(self, *args)
        self.sync_every = 3

    monkeypatch.setattr(engine.Engine, "__init__", rarely)
    small_run(two_classes, tmp_path / "third", "-b", "2", "--checkpoint-steps", "4")
    assert (tmp_path / "third" / "steps.csv").read_text() == (tmp_path / "each" / "steps.csv").read_text()
    last = [torch.load(tmp_path / name / "last.pt", weights_only=True)["progress"] for name in ("each", "third")]
    assert [{**progress, "seconds": 0} for progress in last] == [{**last[0], "seconds": 0}] * 2
