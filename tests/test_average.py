"""The weights that a training keeps, and python -m atmnet average."""

import json
from collections.abc import Callable
from pathlib import Path

import atmnet
import pytest
import torch
from atmnet.__main__ import main
from atmnet.weights.history import average, find_kept, history_name, prune_history
from atmnet_train import imagenet
from safetensors.torch import load_file, save_file


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    values: dict[int, float] = {}
    for epoch, value in enumerate((10.0, 50.0, 40.0, 50.0, 20.0, 30.0), 1):
        values[epoch] = value
        for ema in (False, True):
            (tmp_path / history_name(epoch, ema)).touch()
        prune_history(tmp_path, values, 2, ema=False)
    names = sorted(path.name for path in (tmp_path / "history").iterdir())
    assert [name for name in names if "ema" not in name] == [f"000{epoch}.safetensors" for epoch in (2, 4, 5, 6)]
    assert len(names) == 4 + 6  # each kind for itself


def test_an_average_is_a_checkpoint_like_any(
    small_run: Callable[..., None], two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small_run(two_classes, run, "--checkpoint-hist", "1", "--epochs", "3", "--model-ema-decay", "0.5")
    kept, averaged = find_kept(run), find_kept(run, ema=True)
    assert kept[-1].epoch == averaged[-1].epoch == 3 and len(kept) <= 2
    assert all(one.metric == "top1" and 0 <= one.value <= 100 for one in kept)

    small_run(two_classes, run, "--checkpoint-hist", "3", "--epochs", "5", "--model-ema-decay", "0.5", "--resume", "auto")
    assert [one.epoch for one in find_kept(run)][-3:] == [3, 4, 5]
    capsys.readouterr()
    assert main(["average", "--checkpoint", str(run), "--last", "2"]) == 0
    assert f"next: python -m atmnet_train.imagenet --eval {run}/average.safetensors" in capsys.readouterr().out
    mean, *parts = (load_file(file) for file in (run / "average.safetensors", run / history_name(4, False), run / history_name(5, False)))
    for name, value in mean.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)
        assert value.dtype == parts[0][name].dtype
    assert atmnet.open_classifier(run / "average.safetensors").pretrained_cfg["label_names"] == ["cat", "dog"]
    imagenet.main(["--eval", str(run / "average.safetensors"), "--data-dir", str(two_classes), "--workers", "0", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "eval.json").read_text())["images"] == 10

    assert main(["average", "--checkpoint", str(run), "--best", "1", "--ema", "--out", str(tmp_path / "one.safetensors")]) == 0
    best = max(find_kept(run, ema=True), key=lambda one: (one.value, one.epoch))
    one, alone = load_file(tmp_path / "one.safetensors"), load_file(best.path)
    assert all(torch.equal(one[name], alone[name]) for name in alone)

    with pytest.raises(SystemExit):
        main(["average", "--checkpoint", str(run), "--last", "99"])
    assert "--last 99: there are the weights of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["average", "--checkpoint", str(tmp_path), "--best", "2"])
    assert "train with --checkpoint-hist N" in capsys.readouterr().err


def test_whole_numbers_are_not_averaged(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"mean": torch.full((2,), float(number), dtype=torch.bfloat16), "steps": torch.tensor(number)}, tmp_path / f"{number}")
    mean, _ = average([tmp_path / "1", tmp_path / "2"])
    assert mean["mean"].tolist() == [1.5, 1.5] and mean["mean"].dtype == torch.bfloat16 and mean["steps"] == 2
    save_file({"mean": torch.ones(3)}, tmp_path / "3")
    with pytest.raises(ValueError, match="3 holds another model than"):
        average([tmp_path / "1", tmp_path / "3"])
