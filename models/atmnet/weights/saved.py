"""Files of this library: safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save as to_safetensors
from torch import nn

from atm_triton.files import write_atomically

from .fit import load_strict, unwrap
from .reader import PathLike, check_finite, read_safetensors, safetensors_metadata
from .swapped import swaps_of


def save(model: nn.Module, path: PathLike, /, **metadata: object) -> None:
    """Write the model's weights as safetensors, atomically. ``metadata`` travels with them, as JSON what is not text; so do a digest and,
    of a swapped model, the reports of its swaps."""
    swaps = swaps_of(unwrap(model))
    write_weights(model, path, **dict(swap=swaps) if swaps else {}, **metadata)


def write_weights(model: nn.Module, path: PathLike, /, **metadata: object) -> None:
    """Write them with ``metadata`` and a digest alone."""
    weights = {name: value.contiguous() for name, value in unwrap(model).state_dict().items()}
    write_atomically(Path(path), lambda file: file.write(to_safetensors(weights, safetensors_metadata(weights, metadata))))


def load(model: nn.Module, path: PathLike) -> nn.Module:
    """Load weights that ``save`` wrote into a model of the same architecture, and return the model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no safetensors file, is damaged, holds weights that are not finite, or does not fit; the message lists the names
            and shapes.
    """
    weights = read_safetensors(path).weights
    check_finite(path, weights)
    load_strict(unwrap(model), weights, str(path))
    return model
