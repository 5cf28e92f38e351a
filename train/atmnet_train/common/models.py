"""Models by name, and what is passed on to them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from atmnet.images import describe
from atmnet.variants import check_known, model_arguments
from torch import nn

from .errors import UsageError

# Arguments of timm's that are not a user's here, and what to do instead.
TAKEN = {
    "drop_path_rate": "give --drop-path",
    "features_only": "leave it out",
    "checkpoint_path": "give --init-from",
    "in_chans": "images are read with 3 channels",
}


def model_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    try:
        arguments = model_arguments(pairs)
    except ValueError as error:
        raise UsageError(f"--model-kwargs {error}") from error
    for name, value in arguments.items():
        if name in TAKEN and not (name == "in_chans" and value == 3):
            raise UsageError(f"--model-kwargs {name}: {TAKEN[name]}")
        if name.endswith("_rate") and isinstance(value, (int, float)) and not 0 <= value < 1:
            raise UsageError(f"--model-kwargs {name}={value}: it must be at least 0, and below 1")
    return arguments


@torch.no_grad()
def try_out(model: nn.Module, shape: Sequence[int], name: str, training: bool = True) -> Any:
    """What a model makes of images, or of clips; refuses one that cannot take them. The model stays as it is."""
    with torch.random.fork_rng(devices=[]):
        try:
            return copy.deepcopy(model).train(training)(torch.zeros(*shape))
        except Exception as error:  # of any model
            batch, _, *size = shape
            images = f"{batch} {'image' if len(size) == 2 else 'clip'}{'s' * (batch > 1)} of {' x '.join(map(str, size))}"
            raise UsageError(f"--model {name} cannot take {images}: {describe(error)}") from error


def check_model_name(name: str) -> None:
    try:
        check_known(name)
    except ValueError as error:
        raise UsageError(f"--model {error}") from error
