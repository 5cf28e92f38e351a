"""The evaluation of a checkpoint, from its weights to its report: what every program does alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from .broken import BrokenImages
from .config import write_config
from .engine import Evaluate, end_quietly
from .errors import RunError
from .runtime import RunSettings
from .summary import versions, write_json
from .tables import CLASSES, Rows, to_rich, write_tables
from .task import PHOTOS, compile_core, next_command
from .weights import Weights, load_weights

EVALUATED = "eval_"  # begins the names of tables and pictures: those of the training stay
SHOWN = 150  # classes on the terminal


@dataclass
class Trial:
    """Evaluation of a program: of which model, how, and what is said of it."""

    name: str
    settings: Any  # all of the program's, to be written down
    report: dict[str, Any]  # of them, what belongs beside the metrics
    model: nn.Module
    evaluate: Evaluate
    broken: BrokenImages
    in_words: Callable[[dict[str, Any]], str]
    files: str  # that are left in the output folder, besides eval.json and eval_classes.csv
    core: str = ""  # the submodule that is compiled; the model itself where empty
    predicted: str = PHOTOS


def watch(module: nn.Module, broken: Tensor) -> None:
    """Lets `broken` be true as soon as the module makes numbers that are not finite."""

    def look(module: nn.Module, inputs: Any, output: Tensor | Mapping[str, Tensor]) -> None:
        for values in output.values() if isinstance(output, Mapping) else (output,):
            broken.logical_or_(~values.isfinite().all())

    module.register_forward_hook(look)


def run_trial(settings: RunSettings, accelerator: Accelerator, weights: Weights, trial: Trial) -> None:
    """Loads, measures, and leaves eval.json, with eval.yaml, the configuration that repeats it."""
    load_weights(trial.model, weights)
    # Placed here: under FSDP, Accelerate leaves a model that is not trained where it is.
    model = accelerator.prepare_model(trial.model.to(accelerator.device), evaluation_mode=True)
    broken = torch.zeros((), dtype=torch.bool, device=accelerator.device)
    if settings.compile:
        compile_core(accelerator, model, trial.core)
    else:
        watch(cast(nn.Module, accelerator.unwrap_model(model)).get_submodule(trial.core), broken)
    output, began = Path(settings.output), time.perf_counter()
    metrics = trial.evaluate({"": model}, lambda: None)[""]
    seconds = time.perf_counter() - began
    metrics = {"images": trial.broken.images - len(trial.broken.found)} | metrics  # a segmenter's metrics have no number of images
    if accelerator.reduce(broken.float(), "sum").item() > 0:
        raise RunError(f"{weights.source}: what the network makes of the images is not finite, and no measure of it means anything")
    speed = f"{metrics['images'] / seconds:.1f} images/s"
    if accelerator.is_main_process:
        tables = trial.evaluate.tables("")
        write_tables(output, EVALUATED, tables)
        Console().print(to_rich(some_classes(tables[CLASSES])))
        trial.evaluate.draw(output, EVALUATED)
    accelerator.print(
        f"{trial.name} · {weights.source} · {trial.in_words(metrics)} · {speed} · {output}/eval.json, eval_classes.csv, {trial.files}",
        flush=True,
    )
    if accelerator.is_main_process:
        write_config(output / "eval.yaml", trial.settings)
        facts = {"seconds": seconds, "unreadable": trial.broken.found, "versions": versions()}
        classes = {"classes": tables[CLASSES]}
        write_json(output / "eval.json", {"checkpoint": weights.source} | trial.report | metrics | classes | facts)
        print(next_command(weights.source, trial.predicted), flush=True)
    end_quietly(accelerator)


def some_classes(rows: Rows) -> Rows:
    """Rows that a terminal has room for: of many classes the worst by the measure, which comes after their name."""
    headings = list(rows[0])
    by = headings[headings.index("class") + 1]
    return rows if len(rows) <= SHOWN else sorted((row for row in rows if row[by] is not None), key=lambda row: row[by])[:SHOWN]
