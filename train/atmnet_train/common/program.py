"""A training program: from its command line to training or evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from .checkpoints import find_resume
from .claim import claimed
from .errors import UsageError
from .flags import read_flags
from .runtime import RunSettings, check_tracker
from .settings import build, check_bounds, defaults, fields_of, is_of
from .weights import Weights, arguments_of, read_weights

Values = Mapping[str, Any]  # of settings, by name


def begun_with(values: Values) -> Values:
    """The model's arguments in the checkpoint that a training goes on from, or starts from."""
    resumed = find_resume(values["resume"], Path(values["output"])) if values["resume"] else None
    if resumed is not None:
        return arguments_of(str(resumed), values["model"], ema=False)
    start = values["init_from"] or values.get("backbone_weights")
    return arguments_of(start, values["model"], bool(values.get("ema"))) if start else {}


class AnySettings(Protocol):
    """A dataclass of components, of which one is about running."""

    @property
    def run(self) -> RunSettings: ...


S = TypeVar("S", bound=AnySettings)


@dataclass(frozen=True)
class Program(Generic[S]):
    """Name, settings and doings of a program.

    A setting is what its flag says, else the file of `--config`, else the checkpoint of `--eval`, else what suits the model or head,
    else its default. The model's arguments are also those of the checkpoint of `--resume`, `--init-from` or `--backbone-weights`.
    """

    name: str
    description: str
    settings: type[S]
    from_checkpoint: Callable[[Weights, Values], Values]  # given what was given
    dependent: Sequence[Callable[[Values], Values]]  # one after the other: defaults that depend on other settings, given all of them
    check: Callable[[S], None]
    train: Callable[[S], None]
    evaluate: Callable[[S, Weights], None]

    def read(self, argv: Sequence[str] | None = None) -> tuple[S, Weights | None]:
        """The settings, and the weights that `--eval` names."""
        given = read_flags(self.name, self.description, self.settings, argv)
        weights = read_weights(given["eval"], given.get("ema")) if given.get("eval") else None
        if given.get("output", "output").strip() == "":
            raise UsageError("--output is given without a value")
        if weights is not None:
            given = {**self.trained(weights, given), **given}
        values = self.complete(given)
        if weights is None:
            values |= {**begun_with(values), **given}
        settings = build(self.settings, values)
        check_bounds(settings)
        self.check(settings)
        return settings, weights

    def complete(self, given: Values) -> dict[str, Any]:
        """What was given, and defaults for the rest."""
        values = defaults(self.settings)
        for layer in self.dependent:
            values |= layer({**values, **given})
        return {**values, **given}

    def trained(self, weights: Weights, given: Values) -> Values:
        """Values that the checkpoint says, as far as it can be."""
        fields, found = fields_of(self.settings), self.from_checkpoint(weights, given)
        for name, value in found.items():
            if not is_of(fields[name], value):
                raise UsageError(f"{weights.source} says {name} {str(value)[:40]!r}, which cannot be: it is damaged, or of another program")
        return found

    def parse(self, argv: Sequence[str] | None = None) -> S:
        return self.read(argv)[0]

    def main(self, argv: Sequence[str] | None = None) -> None:
        settings, weights = self.read(argv)
        check_tracker(settings.run)
        with claimed(Path(settings.run.output)):
            if weights is None:
                self.train(settings)
            else:
                self.evaluate(settings, weights)
