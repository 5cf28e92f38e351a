"""Weights without a training state: ours (safetensors, or `last.pt`) and the published files."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import UsageError


@dataclass
class Weights:
    source: str
    state: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)  # of our own files: model, img_size, classes, ...
    published: bool = False  # named as in the authors' implementation

    @property
    def num_classes(self) -> int | None:
        """None where the file does not tell."""
        if self.published and "head.weight" in self.state:
            return self.state["head.weight"].shape[0]
        return self.meta.get("num_classes")


def read_weights(given: str, ema: bool = False) -> Weights:
    """Reads an output folder (its best weights), a safetensors file, a `last.pt`, or a published checkpoint."""
    path = Path(given)
    if path.is_dir():
        names = ["best_ema.safetensors"] if ema else ["best.safetensors", "last.pt"]
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    if not path.is_file():
        raise UsageError(f"there is no {path}; a checkpoint is an output folder, a .safetensors, our last.pt or a published .pth")
    if path.suffix != ".safetensors":
        return _read_torch(path, ema)
    if ema and path.name != "best_ema.safetensors":
        raise UsageError(f"{path} holds one set of weights: leave --ema out, or give the folder or its best_ema.safetensors")
    return _read_safetensors(path)


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UsageError(f"{path} is not a safetensors file that can be read: {error}") from error
    return Weights(str(path), state, {name: _parse(text) for name, text in metadata.items()})


def _read_torch(path: Path, ema: bool) -> Weights:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the published files hold their arguments too
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{path} is not a checkpoint that can be read: {error}") from error
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    if "progress" in content:  # ours
        key = "ema" if ema else "model"
        if content[key] is None:
            raise UsageError(f"{path} was trained without EMA; leave --ema out")
        return Weights(str(path), content[key], content["meta"])
    key = "model_ema" if ema else "model"
    if ema and key not in content:
        raise UsageError(f"{path} has no {key}, only {shorten(sorted(content))}; leave --ema out")
    state = content.get(key, content)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path} has no weights under {key}; it holds {shorten(list(map(str, content)))}")
    return Weights(
        str(path), {name.removeprefix("module."): value for name, value in state.items()}, published="pos_blocks.0.proj.weight" in state
    )


def load_weights(model: nn.Module, weights: Weights) -> None:
    """All or nothing."""
    if weights.published:
        import atmnet

        try:
            atmnet.load_official(model, weights.state)
        except (ValueError, AttributeError) as error:
            raise UsageError(f"{weights.source} is a published ATMNet that does not fit: {error}") from error
        return
    check_fits(model, weights.state, weights.source)
    model.load_state_dict(weights.state)


def load_backbone(net: nn.Module, weights: Weights) -> None:
    """Into a timm model made with `features_only`, the weights of the whole classifier: its head and last norm are left over, and what the
    maps have of their own (a norm each) stays new."""
    wrapped = getattr(net, "model", None)
    model = wrapped if isinstance(wrapped, nn.Module) else net
    if weights.published:
        load_weights(model, weights)
        return
    wanted = model.state_dict()
    state = {}
    for name, value in weights.state.items():
        flat = name.replace(".", "_", 1)  # timm flattens some networks: layers.0.x becomes layers_0.x
        if name not in wanted and flat in wanted:
            state[flat] = value
        elif name in wanted or not name.startswith(("head", "norm", "fc.", "classifier.")):
            state[name] = value
    check_fits(model, state, weights.source)
    model.load_state_dict(state)


def check_fits(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Says which weights do not fit, by name and shape, before anything is loaded."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)}, here {own[name]}" for name in own if name in state and tuple(state[name].shape) != own[name]
    ]
    if missing or unknown or shapes:
        parts = [("not in it", missing), ("not in the model", unknown), ("of another shape", shapes)]
        raise UsageError(
            f"{source} is a checkpoint of another model than this {type(model).__name__}: "
            + "; ".join(f"{len(names)} weights {what}: {shorten(names)}" for what, names in parts if names)
        )


def metadata_strings(meta: Mapping[str, Any]) -> dict[str, str]:
    """safetensors metadata is text: JSON for what is not."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in meta.items()}


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def shorten(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
