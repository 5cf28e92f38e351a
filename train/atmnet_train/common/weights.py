"""Weights without a training state: ours (safetensors, or `last.pt`) and the published files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atmnet.weights.fit import check_fit
from atmnet.weights.published import load_published
from atmnet.weights.reader import read_checkpoint
from torch import Tensor, nn

from .errors import UsageError, environment_number

Values = dict[str, Any]  # of settings, by name


@dataclass
class Weights:
    source: str
    state: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)  # of our own files: model, img_size, classes, ...
    published: bool = False  # named as in the authors' implementation
    averaged: bool = False

    @property
    def num_classes(self) -> int | None:
        """Number of outputs; None where the file does not tell."""
        if self.published and "head.weight" in self.state:
            return self.state["head.weight"].shape[0]
        return self.meta.get("num_classes")

    def said(self, name: str) -> Any:
        """Value that a file of the same program says."""
        if name not in self.meta:
            raise UsageError(f"{self.source} does not say its {name}: it is damaged, or of another program")
        return self.meta[name]


def read_weights(given: str, ema: bool | None = False) -> Weights:
    """Reads an output folder (its best weights), a safetensors file, a `last.pt`, or a published checkpoint.

    `ema` None takes the averaged weights of a published file, and of no other.
    """
    try:
        found = read_checkpoint(given, ema, verify=environment_number("RANK", 0) <= 0)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"{error}; for weights that are not averaged leave --ema out" if ema else str(error)) from error
    return Weights(str(found.path), dict(found.weights), found.meta, found.published, found.averaged)


def arguments_of(given: str, model: str, ema: bool) -> Values:
    """The `model_kwargs` of a checkpoint that a training goes on or starts from, where it is of the same model, or of the one of
    images to a model of videos, and says them."""
    try:
        meta = read_checkpoint(given, ema, verify=False).meta
    except (FileNotFoundError, ValueError):
        return {}  # the training says so; a resumed one needs no such file any more
    found = (meta.get("recipe") or {}).get("model_kwargs")
    return {"model_kwargs": tuple(found)} if found is not None and meta.get("model") in (model, model.removesuffix("_video")) else {}


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Loads all or nothing."""
    if weights.published:
        try:
            load_published(model, weights.state, weights.source)
        except (ValueError, AttributeError) as error:
            raise UsageError(f"{weights.source} is a published ATMNet that does not fit --model: {error}") from error
        return
    check_fits(model, weights.state, weights.source)
    model.load_state_dict(weights.state)


def load_backbone(net: nn.Module, weights: Weights) -> None:
    """Loads the weights of a whole classifier into a timm model made with `features_only`.

    Its head and last norm are left over, and what the maps have of their own (a norm each) stays new, unless the weights are of the
    authors' dense prediction.
    """
    if weights.published:
        load_weights(net, weights)
        return
    wrapped = getattr(net, "model", None)
    model = wrapped if isinstance(wrapped, nn.Module) else net
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
    try:
        check_fit(model, state, source)
    except ValueError as error:
        raise UsageError(str(error)) from error


def shorten(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
