"""Models on the Hugging Face Hub and in folders of its layout, which timm reads too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self, cast

import timm
import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from timm.models import is_model, save_for_hf
from torch import nn

from atm_triton.strict_json import finite

from .reader import check_finite, read_json, read_safetensors, reason
from .saved import save

CARD = """
---
{{ card_data }}
---

# ATMNet

A network of the [Active Token Mixer]({{ paper_url }}) (AAAI 2023; [published code]({{ repo_url }})).

```python
import atmnet, timm

model = atmnet.ATMNet.from_pretrained("{{ repo_id | default("USER/NAME", true) }}")  # this repository's name, or a folder
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

`timm.create_model("hf-hub:USER/NAME", pretrained=True)` makes the same model after `import atmnet`.

| model | |
|---|---|
{% for name, value in facts %}| {{ name }} | {{ value }} |
{% endfor %}
{% if training %}
## Training

| | |
|---|---|
{% for name, value in training %}| {{ name }} | {{ value }} |
{% endfor %}
{% endif %}
"""


def from_folder(folder: str | os.PathLike[str], **kwargs: Any) -> nn.Module:
    """The model of a folder as ``save_pretrained`` or timm's ``save_for_hf`` writes it.

    Raises:
        ValueError: with the name of what is damaged, does not fit, or is of no model that timm knows.
    """
    read_config(folder)
    weights, overlay = Path(folder) / "model.safetensors", dict[str, Any]()
    if weights.is_file():
        read_safetensors(weights)  # timm verifies nothing
        overlay = dict(pretrained_cfg_overlay=dict(source="", file=str(weights)))  # timm before 1.0.30 cannot read these by itself
    return create_at(f"local-dir:{os.fspath(folder)}", **overlay, **kwargs)


def create_at(place: str, **kwargs: Any) -> nn.Module:
    """The model of a place of timm's, ``hf-hub:`` or ``local-dir:``; raises as ``from_folder``."""
    try:
        model = timm.create_model(place, pretrained=True, **kwargs)
    except Exception as error:  # no model of timm's, arguments that it does not take, weights that do not fit, no network
        raise ValueError(f"{place.removeprefix('local-dir:')} cannot be opened: {reason(error)}") from error
    check_finite(place.removeprefix("local-dir:"), model.state_dict())
    return model


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Description of a model by its folder; raises as ``from_folder``."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    if not isinstance(config.get("architecture"), str):
        raise ValueError(f"{path} does not say which architecture the model has")
    if not is_model(config["architecture"]):
        raise ValueError(f"{path} is of the architecture {config['architecture'][:80]!r}, which timm does not know")
    for name in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(name, {}), dict):
            raise ValueError(f"{path}: {name} holds a {type(config[name]).__name__}, not settings by name")
    names, number = config.get("label_names"), config.get("num_classes", 0)
    if not isinstance(names, (list, dict, type(None))) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{path} says label_names {str(names)[:40]!r} and num_classes {str(number)[:40]!r}, which cannot be")
    return config


class HubModel(
    ModelHubMixin,
    library_name="atm-triton",
    license="mit",
    pipeline_tag="image-classification",
    tags=["image-classification", "timm", "arxiv:2203.06108"],
    repo_url="https://github.com/microsoft/ActiveMLP",
    paper_url="https://arxiv.org/abs/2203.06108",
    model_card_template=CARD,
):
    """Adds ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

    A folder holds ``model.safetensors``, ``config.json`` and ``README.md``, the model card. The config is timm's, with every argument of
    the model: ``timm.create_model("local-dir:FOLDER", pretrained=True)`` makes it too, and a folder of timm's ``save_for_hf`` loads.

    Attributes:
        training_summary: What config and card say of the training: figures by name. ``open_classifier`` takes it from an output folder of
            train/imagenet.py.
    """

    training_summary: dict[str, Any] | None = None

    def _save_pretrained(self, save_directory: Path) -> None:
        model: Any = self
        config: Any = self._hub_mixin_config
        arguments = {name: value for name, value in config.items() if name not in ("device", "dtype")}
        if len(model.stages) != len(arguments["depths"]):
            raise ValueError(
                f"the model was made with {len(arguments['depths'])} stages and pruned to {len(model.stages)}, "
                "and could not be loaded again: save the whole model, and prune what is loaded"
            )
        arguments |= dict(num_classes=model.num_classes, global_pool=model.head.global_pool.pool_type)  # of the latest reset_classifier
        if isinstance(model.norm, nn.Identity):
            raise ValueError("the model has lost its last norm, as in features_only, and could not be loaded again: save the whole model")
        if not hasattr(self, "pretrained_cfg"):  # made without timm; the arguments tell all of the architecture
            model.pretrained_cfg = cast(Any, timm.get_pretrained_cfg("atmnet_t")).to_dict()
        content = {"training_summary": finite(self.training_summary)} if self.training_summary else {}
        save_for_hf(model, str(save_directory), model_config=content, model_args=arguments, safe_serialization=True)
        save(model, save_directory / "model.safetensors", format="pt")  # with a digest, and at every moment whole

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: torch.device | str = "cpu",
        strict: bool = True,
        **model_kwargs: Any,
    ) -> Self:
        """The model of a folder or of a repository on the Hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: The folder, or ``"USER/NAME"``.
            force_download, token, cache_dir, local_files_only, revision: Of the download, as everywhere in huggingface_hub.
            map_location: The device of the model.
            strict: Refuse weights that lack some of the model's or have others. Shapes must agree in any case.
            **model_kwargs: Arguments of the model, before those in the config.

        Raises:
            ValueError: with the name of what is damaged, does not fit, or is no ATMNet.
        """
        folder = os.fspath(pretrained_model_name_or_path)
        if not os.path.isdir(folder):
            folder = snapshot_download(
                folder,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=["config.json", "model.safetensors"],
            )
        config = read_config(folder)
        if not config["architecture"].startswith("atmnet_"):
            raise ValueError(f"{folder} holds {config['architecture']}, not an ATMNet: timm.create_model makes it")
        model = from_folder(folder, pretrained_strict=strict, **model_kwargs)
        getattr(model, "_model_args", {}).pop("pretrained_strict", None)  # timm keeps it, to be saved with the model
        summary = config.get("training_summary")
        cast(Any, model).training_summary = summary if isinstance(summary, dict) else None
        return cast(Self, model.to(map_location).eval())

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        model: Any = self
        height, width = model.pretrained_cfg["input_size"][-2:]
        config: Any = self._hub_mixin_config
        facts = [
            ("blocks", ", ".join(map(str, config["depths"]))),
            ("channels", ", ".join(map(str, config["dims"]))),
            ("parameters", f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M"),
            ("classes", model.num_classes),
            ("images", f"{height} x {width}"),
        ]
        training = [(name.replace("_", " "), _text(value)) for name, value in (self.training_summary or {}).items()]
        return super().generate_model_card(*args, **dict(facts=facts, training=training) | kwargs)


def _text(value: Any) -> str:
    """A figure as a cell of a table."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    return f"{value:.5g}" if isinstance(value, float) else str(value)
