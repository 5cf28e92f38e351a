"""Configuration files: settings as YAML, in and out, and the recipes that come with the package."""

import dataclasses
import difflib
import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import UsageError
from .files import write_atomically
from .settings import about, components, fields_of, flatten, shape, title

RECIPE_FOLDER = Path(__file__).parents[1] / "recipes"
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def recipes_of(settings: type) -> list[str]:
    """The recipes that are of a program: those of which it knows every setting."""
    known = set(fields_of(settings))
    return [path.name for path in sorted(RECIPE_FOLDER.glob("*.yaml"), key=lambda path: path.stem) if known.issuperset(read_yaml(path))]


def find_config(given: str, settings: type) -> Path:
    """The file that is meant: a path, or a recipe with or without its ending."""
    if Path(given).is_file():
        return Path(given)
    stems = [name.removesuffix(".yaml") for name in recipes_of(settings)]
    if given.removesuffix(".yaml") in stems:
        return RECIPE_FOLDER / f"{given.removesuffix('.yaml')}.yaml"
    raise UsageError(f"--config {given}: there is no such file, nor such a recipe{near(given, stems) or '.'} There are {', '.join(stems)}")


def read_config(given: str, program: str, settings: type) -> dict[str, Any]:
    """Values by name, of the right types. `null` says nothing: what it leaves open is the default."""
    path, known = find_config(given, settings), fields_of(settings)
    values = {}
    for key, text in read_yaml(path).items():
        name = key.replace("-", "_")
        if name not in known:
            raise UsageError(f"{path}: {key}: {brief(text)}: {program} has no setting {key}{near(name, list(known))}")
        try:
            value = read_value(known[name], text)
        except ValueError as error:
            raise UsageError(f"{path}: {key}: {brief(text)}: {error}") from error
        if value is not None:
            values[name] = value
    return values


def brief(value: Any) -> str:
    """In a message: lists of lists of aliases may be longer than any memory."""
    return value if isinstance(value, str) else reprlib.repr(value)


class EachOnce(yaml.BaseLoader):
    """Refuses a name given twice, of which YAML's own keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [str(key.value).replace("-", "_") for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is given more than once")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads every value as the text that it is, for its setting says what is meant: to YAML itself 1e-3 is a text, and `no` false."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), EachOnce)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is not YAML that can be read: {error}") from error
    if content is None or content == "":
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}: a configuration has lines `setting: value`")
    return content


def read_value(field: dataclasses.Field[Any], text: Any) -> Any:
    kind, number, _ = shape(field)
    if text == "null":
        return None
    if number is None:
        return read_one(field, kind, text)
    if not isinstance(text, list) or (isinstance(number, int) and len(text) != number) or (number == "+" and not text):
        raise ValueError(f"it must be a list of {number if isinstance(number, int) else 'values'}, such as [a, b]")
    return tuple(read_one(field, kind, part) for part in text)


def read_one(field: dataclasses.Field[Any], kind: type, text: Any) -> Any:
    if not isinstance(text, str):
        raise ValueError(f"it must be one value ({kind.__name__}), not a {type(text).__name__}")
    text = text.lower() if kind is bool else text
    choices = list(SWITCH) if kind is bool else about(field).choices
    if choices and text not in choices:
        raise ValueError(f"it must be one of {', '.join(choices)}{near(text, choices)}")
    if kind is bool:
        return SWITCH[text]
    try:
        return (about(field).read or kind)(text)
    except ValueError:
        raise ValueError(f"it must be {'a whole number' if kind is int else 'a number'}") from None


def near(given: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(given, known, n=3)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def write_config(path: Path, settings: Any) -> None:
    """Writes all of them, by component: `--config` of this file repeats the run. A value in JSON is one in YAML."""
    values, text = flatten(settings), ""
    for component in components(settings).values():
        text += f"# {title(component)}\n"
        text += "".join(f"{field.name}: {json.dumps(values[field.name])}\n" for field in dataclasses.fields(component)) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
