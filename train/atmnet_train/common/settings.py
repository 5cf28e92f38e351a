"""Settings: what a program can be told, in frozen dataclasses, one a component. Command line and configuration files come from them.

A program's settings are a dataclass of such components. No two fields have one name, so that a flag or a line of a file means one.
"""

import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from .errors import UsageError

S = TypeVar("S")

PLACES = ("output", "eval", "resume", "init_from", "teacher", "backbone_weights")  # settings that name a file or folder
SPLITS = ("train_split", "val_split")
LARGEST_RATE = 1e4  # of learning and of weight decay; beyond, the first step leaves no finite weight
LARGEST_SIDE = 2**14  # of an image that is trained on; a slip of the finger takes all memory
BELOW_1 = 0.9999  # of what at 1 changes nothing any more, or leaves nothing


@dataclass(frozen=True)
class About:
    """Description of a setting, besides its name, type and default."""

    help: str
    aliases: tuple[str, ...] = ()  # other spellings of its flag
    told: str = ""  # what the default is, in words, where it depends on something
    metavar: str | None = None
    choices: Sequence[str] = ()
    at_least: float | None = None
    at_most: float | None = None
    share: bool = False  # lies between 0 and 1
    incidental: bool = False  # does not change the course of a run, so that one may be resumed with another
    read: Callable[[str], Any] | None = None  # from text, where that is more than its type


def setting(default: Any, help: str, *aliases: str, **about: Any) -> Any:
    """A field of a component of settings."""
    return dataclasses.field(default=default, metadata={"about": About(help, aliases, **about)})


def about(field: dataclasses.Field[Any]) -> About:
    return field.metadata["about"]


def components(settings: Any) -> dict[str, type]:
    return {field.name: field.type for field in dataclasses.fields(settings)}  # type: ignore[misc]


def title(component: type) -> str:
    """Title of a component: the first line of its docstring."""
    return (inspect.getdoc(component) or "").splitlines()[0].rstrip(".")


def fields_of(settings: Any) -> dict[str, dataclasses.Field[Any]]:
    """Fields of all settings of a program, by name."""
    return {field.name: field for component in components(settings).values() for field in dataclasses.fields(component)}


def defaults(settings: type) -> dict[str, Any]:
    return {name: field.default for name, field in fields_of(settings).items()}


def build(settings: type[S], values: Mapping[str, Any]) -> S:
    """The settings of a program from the value of each."""
    parts = {
        name: component(**{field.name: values[field.name] for field in dataclasses.fields(component)})
        for name, component in components(settings).items()
    }
    return settings(**parts)


def flatten(settings: Any) -> dict[str, Any]:
    """The values by name, with lists for tuples, as files hold them."""
    values = {name: value for component in dataclasses.asdict(settings).values() for name, value in component.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def recipe_of(settings: Any) -> dict[str, Any]:
    """Settings that must be the same for a resumed run to repeat an uninterrupted one."""
    fields = fields_of(settings)
    return {name: value for name, value in flatten(settings).items() if not about(fields[name]).incidental}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def shape(field: dataclasses.Field[Any]) -> tuple[type, int | str | None, bool]:
    """The type of one value, how many there are (as argparse says it; None for one alone), and whether there may be none."""
    optional = isinstance(field.type, UnionType)
    kind: Any = get_args(field.type)[0] if optional else field.type
    if get_origin(kind) is not tuple:
        return kind, None, optional
    kinds = get_args(kind)
    return kinds[0], ("*" if field.default == () else "+") if ... in kinds else len(kinds), optional


def is_of(field: dataclasses.Field[Any], value: Any) -> bool:
    """Tell whether a value, of a file perhaps, is of the kind of a setting."""
    kind, number, optional = shape(field)
    if value is None:
        return optional
    values = [value] if number is None else value
    if number == "+" and not value:
        return False
    if number is not None and not (isinstance(value, tuple) and (not isinstance(number, int) or len(value) == number)):
        return False
    kinds, choices = (int, float) if kind is float else kind, about(field).choices
    return all(not choices or one in choices for one in values) and all(
        isinstance(one, kinds) and isinstance(one, bool) == (kind is bool) for one in values
    )


def check_bounds(settings: Any) -> None:
    """Refuses numbers that are too small or too large, or none, by the name of their flag."""
    values = flatten(settings)
    for name, field in fields_of(settings).items():
        its, value = about(field), values[name]
        for one in value if isinstance(value, list) else [value]:
            if one == "" and name in PLACES:  # an unset variable of a shell, for which nothing else may be taken
                raise UsageError(f"{flag(name)} is given without a value")
            if name in SPLITS and set(Path(os.path.normpath(one)).parts) <= {"..", "/"}:  # what holds all splits, and more
                raise UsageError(f"{flag(name)} {one!r} is no name of a split")
            if isinstance(one, int) and one >= 2**63:
                raise UsageError(f"{flag(name)}: it must be less than 2^63")
            if isinstance(one, float) and not math.isfinite(one):
                raise UsageError(f"{flag(name)} {one}: it must be a finite number")
            if one is not None and its.at_least is not None and one < its.at_least:
                raise UsageError(f"{flag(name)} {one}: it must be at least {its.at_least}")
            if one is not None and its.at_most is not None and one > its.at_most:
                raise UsageError(f"{flag(name)} {one}: it must be at most {its.at_most:g}")
            if one is not None and its.share and not 0 <= one <= 1:
                raise UsageError(f"{flag(name)} {one}: it must be between 0 and 1")
