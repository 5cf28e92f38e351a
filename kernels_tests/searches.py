"""Searches by hypothesis, of two lengths: a few examples before every commit, many more with the exhaustive tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy


def search(quick: int, long: int, **drawn: SearchStrategy) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``given(**drawn)`` as two tests, named by how many examples they draw."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("examples", [quick, pytest.param(long, marks=pytest.mark.exhaustive)])
        def searched(examples: int, **others: object) -> None:
            settings(max_examples=examples)(given(**drawn)(test))(**others)

        parameters = inspect.signature(test).parameters
        others = [parameter for name, parameter in parameters.items() if name not in drawn]
        examples = inspect.Parameter("examples", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        searched.__signature__ = inspect.Signature([*others, examples])  # type: ignore[attr-defined]
        searched.__name__, searched.__doc__ = test.__name__, test.__doc__
        return searched

    return decorate
