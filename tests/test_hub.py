"""Models in folders of the Hugging Face Hub's layout, which is timm's too."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import atmnet
import huggingface_hub.hub_mixin
import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from torch import Tensor

SMALL = dict(depths=(1, 1), dims=(8, 16), mlp_ratios=(2, 2), share=(2, 4))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 40, 32)


def small(**kwargs) -> atmnet.ATMNet:
    model = timm.create_model("atmnet_t", **SMALL | dict(num_classes=3) | kwargs).eval()
    model.pretrained_cfg.update(num_classes=3, input_size=(3, 96, 96), crop_pct=0.9, label_names=["ant", "bee", "cow"])
    return model


@torch.no_grad()
def test_round_trip(tmp_path: Path, images: Tensor):
    model = small(drop_path_rate=0.2)
    model.training_summary = {"val_top1": 61.25, "recipe": {"lr": 1e-3}}
    model.save_pretrained(tmp_path)
    again = atmnet.ATMNet.from_pretrained(tmp_path)
    torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)
    assert not again.training and again.training_summary == model.training_summary
    assert again.pretrained_cfg["label_names"] == ["ant", "bee", "cow"]
    config = resolve_model_data_config(again)
    assert (tuple(config["input_size"]), config["crop_pct"]) == ((3, 96, 96), 0.9)
    assert again.stages[1].blocks[0].drop_path.drop_prob == pytest.approx(0.2)
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads((tmp_path / "config.json").read_text())


def test_the_card(tmp_path: Path):
    model = small()
    model.training_summary = {"val_top1": 61.25, "recipe": {"lr": 1e-3, "opt": "adamw"}}
    model.save_pretrained(tmp_path, model_card_kwargs={"repo_id": "me/bees"})
    card = (tmp_path / "README.md").read_text()
    for said in (
        "library_name: atm-triton",
        "license: mit",
        "- arxiv:2203.06108",
        'open_model("hf-hub:me/bees")',
        "| blocks | 1, 1 |",
        "| images | 96 x 96 |",
        "| val top1 | 61.25 |",
        "| recipe | lr 0.001, opt adamw |",
    ):
        assert said in card
    small().save_pretrained(tmp_path / "untrained")
    assert "## Training" not in (tmp_path / "untrained/README.md").read_text()


@torch.no_grad()
def test_timm_reads_and_writes_the_same_layout(tmp_path: Path, images: Tensor):
    model = small()
    model.save_pretrained(tmp_path)
    if tuple(map(int, timm.__version__.split(".")[:3])) >= (1, 0, 30):  # those before cannot read the safetensors of a folder
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)
        features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=(0, 1))
        assert torch.equal(features.model.stages[1].downsample.weight, model.stages[1].downsample.weight)
    save_for_hf(model, tmp_path / "timm", model_args=dict(num_classes=3) | SMALL, safe_serialization=True)
    torch.testing.assert_close(atmnet.ATMNet.from_pretrained(tmp_path / "timm")(images), model(images), rtol=0, atol=0)


@torch.no_grad()
def test_a_model_made_without_timm(tmp_path: Path):
    model = atmnet.ATMNet(1, 2, **SMALL).eval()
    model.save_pretrained(tmp_path)
    again = atmnet.ATMNet.from_pretrained(tmp_path)
    x = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@torch.no_grad()
def test_another_classifier(tmp_path: Path, images: Tensor):
    model = small()
    model.reset_classifier(5, "max")
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(atmnet.ATMNet.from_pretrained(tmp_path)(images), model(images), rtol=0, atol=0)
    tuned = atmnet.ATMNet.from_pretrained(tmp_path, num_classes=7, drop_path_rate=0.1)
    assert tuned(images).shape == (2, 7)
    torch.testing.assert_close(tuned.forward_features(images), model.forward_features(images), rtol=0, atol=0)


@torch.no_grad()
def test_copies_keep_what_saving_needs(tmp_path: Path, images: Tensor):
    model = small()
    for i, other in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        other.save_pretrained(tmp_path / str(i))
        torch.testing.assert_close(atmnet.ATMNet.from_pretrained(tmp_path / str(i))(images), model(images), rtol=0, atol=0)


def test_what_cannot_be_saved_or_loaded(tmp_path: Path):
    model = small()
    model.prune_intermediate_layers([0])
    with pytest.raises(ValueError, match="made with 2 stages and pruned to 1"):
        model.save_pretrained(tmp_path)
    save_for_hf(timm.create_model("test_convnext"), tmp_path / "other", safe_serialization=True)
    with pytest.raises(ValueError, match="holds test_convnext, not an ATMNet"):
        atmnet.ATMNet.from_pretrained(tmp_path / "other")


def test_pushing_uploads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent: dict[str, object] = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, **_):
            sent.update({file.name: file.stat().st_size for file in Path(folder_path).iterdir()}, to=repo_id)
            assert 'open_model("hf-hub:me/bees")' in (Path(folder_path) / "README.md").read_text()
            return "https://huggingface.co/me/bees/commit/1"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    assert small().push_to_hub("me/bees").endswith("commit/1")
    assert sent.pop("to") == "me/bees" and set(sent) == {"README.md", "config.json", "model.safetensors"} and all(sent.values())


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Tensor):
    """The download itself is huggingface_hub's."""
    model = small()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", lambda filename, **_: str(tmp_path / filename))
    asked: dict[str, object] = {}

    def download(repo_id, **kwargs):
        asked.update(kwargs, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr("atmnet.weights.places.snapshot_download", download)
    again = atmnet.ATMNet.from_pretrained("me/bees", revision="v1", token="secret")
    assert torch.equal(again(images), model(images))
    assert (asked["repo_id"], asked["revision"], asked["token"]) == ("me/bees", "v1", "secret")


def test_a_network_of_features_is_not_saved(tmp_path: Path):
    features = timm.create_model("atmnet_t", features_only=True, out_indices=(0, 1), **SMALL)
    with pytest.raises(ValueError, match="lost its last norm"):
        features.model.save_pretrained(tmp_path)
