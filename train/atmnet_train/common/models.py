"""Models by name, and what is passed on to them."""

from collections.abc import Sequence
from typing import Any

from atmnet.variants import check_known, model_arguments

from .errors import UsageError


def model_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    try:
        return model_arguments(pairs)
    except ValueError as error:
        raise UsageError(f"--model-kwargs {error}") from error


def check_model_name(name: str) -> None:
    try:
        check_known(name)
    except ValueError as error:
        raise UsageError(f"--model {error}") from error
