"""What the programs' command lines have in common."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from atmnet.variants import check_known, model_arguments

from .errors import UsageError


class HelpFormatter(argparse.HelpFormatter):
    """Adds the default where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        untold = action.default in (None, False, [], argparse.SUPPRESS, "") or "default" in text
        return text if untold else f"{text} (default: %(default)s)".lstrip()


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


def check_numbers(args: argparse.Namespace, at_least: Mapping[str, float], shares: Sequence[str]) -> None:
    """Flags that are given must be at least so much; `shares` lie between 0 and 1."""
    for name, least in at_least.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: it must be at least {least}")
    for name in shares:
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: it must be between 0 and 1")


def recipe_of(args: argparse.Namespace, incidental: set[str]) -> dict[str, object]:
    """What must be the same for a resumed run to repeat an uninterrupted one: all flags but the incidental ones."""
    return {
        name: list(value) if isinstance(value, (list, tuple)) else value for name, value in vars(args).items() if name not in incidental
    }
