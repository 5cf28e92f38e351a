"""Models of any task into folders of the Hugging Face Hub's layout, and onto the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import timm
from huggingface_hub import HfApi
from PIL import Image
from timm.models._hub import save_config_for_hf
from torch import nn

from atm_triton.files import write_atomically
from atm_triton.strict_json import dumps, finite

from ..model import ATMNet
from ..tasks import CLASSIFICATION, SEGMENTATION, about
from .building import build_detector, build_segmenter
from .card import card_of, picture_name
from .describing import check_config, describe
from .fit import check_fit, unwrap
from .places import CONFIG, PICTURES, WEIGHTS, unloaded
from .reader import Checkpoint, PathLike, read_json
from .saved import write_weights
from .swapped import swaps_of

LARGEST = 1000  # pixels of a picture's longer side


def save_pretrained(model: nn.Module, folder: PathLike, *, license: str | None = None) -> None:
    """Write a model as a folder that ``open_model`` opens, exactly as it is; of any task, swapped or not.

    The folder holds ``model.safetensors``, ``config.json``, which says how to make the model again, what its inputs and outputs mean, its
    metrics, its ``training_summary`` and its swaps, and ``README.md``, the model card with all that; ``pictures/`` are those of its
    ``about``, which of an opened output folder are the run's. A card that is there already stays.

    Args:
        model: A classifier of timm's, ATMNet or not, or a model of ``create_segmenter`` or ``create_detector``.
        folder: It is made.
        license: By the Hub's name, such as ``"mit"``, for the card; None for that which timm names for the architecture's weights.

    Raises:
        ValueError: the model could not be made again by what a folder says.
    """
    _write(unwrap(model), Path(folder), None, license)


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> str:
    """Upload what ``save_pretrained`` writes, and return the address of the commit.

    Args:
        model, license: As for ``save_pretrained``.
        repo_id: ``"USER/NAME"``; the repository is made.
        private: Whether a new repository is.
        token: Of the Hub, where the one that ``hf auth login`` keeps is not meant.
        **kwargs: Of huggingface_hub's ``HfApi.upload_folder``: ``commit_message``, ``revision``, ``create_pr``, ...
    """
    with TemporaryDirectory() as folder:
        _write(unwrap(model), Path(folder), repo_id, license)
        api = HfApi(token=token)
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=name, folder_path=folder, **{"commit_message": "Add the model"} | kwargs))


def _write(model: nn.Module, folder: Path, repo_id: str | None, license: str | None) -> None:
    write_model(model, folder)
    card = folder / "README.md"
    if not card.exists():
        write_atomically(card, lambda file: file.write(str(card_of(model, repo_id, license)).encode()))


def write_model(model: Any, folder: Path) -> None:
    """All but the card; raises as ``save_pretrained``, before anything is written."""
    if isinstance(model, ATMNet) and not hasattr(model, "pretrained_cfg"):  # made without timm; the arguments tell all of the architecture
        model.pretrained_cfg = cast(Any, timm.get_pretrained_cfg("atmnet_t")).to_dict()
    described = about(model)
    more = dict(metrics=described.metrics, training_summary=getattr(model, "training_summary", None), swap=swaps_of(model))
    if described.clips is not None:
        more["clips"] = asdict(described.clips)
    told = finite({name: value for name, value in more.items() if value})
    try:
        config = _of_classifier(model, told) if described.task == CLASSIFICATION else _of_dense(model, folder, told)
    except ValueError as error:
        raise ValueError(f"{folder}: the model could not be opened again: {error}") from error
    _write_pictures(described.pictures, folder)
    write_atomically(folder / CONFIG, lambda file: file.write(dumps(config, indent=2).encode()))
    write_weights(model, folder / WEIGHTS, format="pt")  # as timm expects it


def _of_classifier(model: Any, told: dict[str, Any]) -> dict[str, Any]:
    """The config as timm writes it."""
    arguments = model.hub_arguments() if isinstance(model, ATMNet) else None
    with TemporaryDirectory() as folder:
        path: Any = Path(folder) / CONFIG  # as timm before 1.0.30 wants it
        save_config_for_hf(model, path, model_config=told, model_args=arguments)
        config = read_json(path)
        check_fit(unloaded(folder, told.get("swap")), model.state_dict(), f"the {config['architecture']} to be saved")
    return config


def _of_dense(model: Any, folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    config = describe(model) | told
    path = folder / CONFIG
    meta = check_config(path, config)
    build = build_segmenter if meta["task"] == SEGMENTATION else build_detector
    build(Checkpoint(folder / WEIGHTS, model.state_dict(), meta, config=path), meta["model"])  # which refuses what does not fit
    return config


def _write_pictures(pictures: Sequence[Path], folder: Path) -> None:
    images = []
    for path in pictures:  # all of them before the first is written: some may be of this folder
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        image.thumbnail((LARGEST, LARGEST))
        images.append(image)
    for stale in (folder / PICTURES).glob("*.jpg"):
        stale.unlink()
    for number, image in enumerate(images):
        write_atomically(folder / picture_name(number), lambda file, image=image: image.save(file, "JPEG", quality=88))  # type: ignore[misc]
