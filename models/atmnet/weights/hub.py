"""Models on the Hugging Face Hub and in folders of its layout, which timm reads too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self, cast

import timm
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from timm.models import save_for_hf
from torch import nn

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
    """The model of a folder as ``save_pretrained`` or timm's ``save_for_hf`` writes it."""
    weights = Path(folder) / "model.safetensors"
    # timm before 1.0.30 cannot read these by itself.
    overlay: dict[str, Any] = dict(pretrained_cfg_overlay=dict(source="", file=str(weights))) if weights.is_file() else {}
    return timm.create_model(f"local-dir:{os.fspath(folder)}", pretrained=True, **overlay, **kwargs)


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
        content = {"training_summary": self.training_summary} if self.training_summary else {}
        save_for_hf(model, str(save_directory), model_config=content, model_args=arguments, safe_serialization=True)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> Self:
        folder = model_id
        if not os.path.isdir(folder):
            folder = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=["config.json", "model.safetensors"],
            )
        config = json.loads((Path(folder) / "config.json").read_text())
        if not str(config.get("architecture")).startswith("atmnet_"):
            raise ValueError(f"{model_id} holds {config.get('architecture')}, not an ATMNet: timm.create_model makes it")
        model = from_folder(folder, **model_kwargs)
        cast(Any, model).training_summary = config.get("training_summary")
        return cast(Self, model.eval())

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
