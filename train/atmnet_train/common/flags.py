"""The command line of a program, from its settings.

No library does: jsonargparse refuses `--batch-size` for a field batch_size, tyro refuses abbreviated flags; neither tells what was given.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from .config import read_config, recipes_of
from .settings import about, components, flag, shape, title

CONFIG = "a file of settings, which flags override: a path, or one of the recipes {} (default: none)"


class Switch(argparse.Action):
    """`--compile` and `--no-compile` for the field compile, `--no-aug` and `--aug` for the field no_aug."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        self.off = opposite(dest)
        super().__init__([*option_strings, self.off], dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, option != self.off)


def opposite(name: str) -> str:
    return flag(name.removeprefix("no_")) if name.startswith("no_") else flag(f"no_{name}")


def default_in_words(field: dataclasses.Field[Any]) -> str:
    if about(field).told:
        return about(field).told
    if field.type is bool:
        return "on" if field.default else "off"
    return " ".join(map(str, field.default)) or "none" if isinstance(field.default, tuple) else str(field.default)


def build_parser(program: str, description: str, settings: type) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=description, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help=CONFIG.format(", ".join(recipes_of(settings))))
    for component in components(settings).values():
        group = parser.add_argument_group(title(component))
        for field in dataclasses.fields(component):
            add_flag(group, field)
    return parser


def add_flag(group: Any, field: dataclasses.Field[Any]) -> None:
    its, (kind, number, _) = about(field), shape(field)
    options: dict[str, Any] = {"dest": field.name, "help": f"{its.help} (default: {default_in_words(field)})".replace("%", "%%")}
    if kind is bool:
        options["action"] = Switch
    else:
        options |= {"type": its.read or kind, "nargs": number, "metavar": its.metavar, "choices": its.choices or None}
    group.add_argument(flag(field.name), *its.aliases, **options)


def read_flags(program: str, description: str, settings: type, argv: Sequence[str] | None) -> dict[str, Any]:
    """Reads what was given, by name: flags, and under them the file that `--config` names."""
    given = vars(build_parser(program, description, settings).parse_args(argv))
    config = given.pop("config", None)
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return (read_config(config, program, settings) if config is not None else {}) | flags
