"""Models by name, and what is passed on to them."""

import ast
from collections.abc import Sequence
from typing import Any

import timm

from .errors import UsageError


def model_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` as timm's own programs read it: a Python value, else text."""
    kwargs: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--model-kwargs {pair}: write it as KEY=VALUE")
        try:
            kwargs[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            kwargs[key] = value
    return kwargs


def check_model_name(name: str) -> None:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UsageError(f"--model {name}: timm knows no such model" + (f"; it knows {', '.join(near)}" if near else ""))
