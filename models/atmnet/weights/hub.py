"""The methods by which an ATMNet goes to the Hugging Face Hub and comes from there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import nn

from .places import download, from_folder, read_config


class HubModel(ModelHubMixin):
    """Adds ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

    A folder is that of ``atmnet.save_pretrained``. The config is timm's, with every argument of the model:
    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` makes it too, and a folder of timm's ``save_for_hf`` loads.

    Attributes:
        training_summary: What config and card say of the training: figures by name. ``open_model`` takes it from an output folder of
            a training program.
    """

    training_summary: dict[str, Any] | None = None

    def hub_arguments(self) -> dict[str, Any]:
        """Arguments that make the model again, as it is now.

        Raises:
            ValueError: it has lost parts since it was made.
        """
        model: Any = self
        config: Any = self._hub_mixin_config
        arguments = {name: value for name, value in config.items() if name not in ("device", "dtype")}
        if len(model.stages) != len(arguments["depths"]):
            raise ValueError(
                f"the model was made with {len(arguments['depths'])} stages and pruned to {len(model.stages)}, "
                "and could not be loaded again: save the whole model, and prune what is loaded"
            )
        if isinstance(model.norm, nn.Identity):
            raise ValueError("the model has lost its last norm, as in features_only, and could not be loaded again: save the whole model")
        return arguments | dict(
            num_classes=model.num_classes, global_pool=model.head.global_pool.pool_type
        )  # of the latest reset_classifier

    def _save_pretrained(self, save_directory: Path) -> None:
        from .sharing import write_model  # which knows models of all tasks, this one too

        write_model(self, save_directory)

    def generate_model_card(self, repo_id: str | None = None, license: str | None = None) -> ModelCard:
        from .card import card_of

        return card_of(self, repo_id, license)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the folder; the arguments are huggingface_hub's."""
        card = dict(repo_id=repo_id) | (kwargs.pop("model_card_kwargs", None) or {})
        return super().push_to_hub(repo_id, model_card_kwargs=card, **kwargs)

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
        from .opening import described_by

        folder = os.fspath(pretrained_model_name_or_path)
        if not os.path.isdir(folder):
            folder = download(
                folder,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        config = read_config(folder)
        held = str(config.get("architecture") or f"a model of {config['task']}")
        if not held.startswith("atmnet_"):
            raise ValueError(f"{folder} holds {held}, not an ATMNet: atmnet.open_model makes it")
        model = from_folder(folder, pretrained_strict=strict, **model_kwargs)
        getattr(model, "_model_args", {}).pop("pretrained_strict", None)  # timm keeps it, to be saved with the model
        return cast(Self, described_by(folder, config, model).to(map_location).eval())
