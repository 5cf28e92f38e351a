"""The model card: what a repository of the Hub says of its model."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn
from torchvision.models.detection import MaskRCNN

from atm_triton import ActiveTokenMixer
from atm_triton.swapping.swap import reports_of

from ..model import ATMNet
from ..tasks import CLASSIFICATION, DETECTION, NOUNS, SEGMENTATION, About, about, is_of_videos, parts_of, pipeline_tag
from .places import PICTURES

PAPER, CODE = "https://arxiv.org/abs/2203.06108", "https://github.com/microsoft/ActiveMLP"
NAMED = 20  # classes, and modules that were swapped

USE = """```python
import atmnet

model = atmnet.open_model("{place}")  # or the path of a folder
print(model.about)
print(atmnet.predict(model, "{file}"))
```"""


MEASURED = "Of the validation that these weights were kept for; percentages, but for `loss` and the number of `images`."


def picture_name(number: int) -> str:
    return f"{PICTURES}/{number}.jpg"


def card_of(model: Any, repo_id: str | None = None, license: str | None = None) -> ModelCard:
    """The card of a model, with its metrics for the Hub's tables of results.

    Args:
        model: Of any task.
        repo_id: ``"USER/NAME"``, where it is known.
        license: By the Hub's name for it; None for that which timm names for the architecture's weights.
    """
    described, mixes = about(model), any(isinstance(module, ActiveTokenMixer) for module in model.modules())
    net: Any = next(module for module in model.modules() if hasattr(module, "pretrained_cfg"))  # of timm
    license = license or net.pretrained_cfg.get("license") or "unknown"
    place = repo_id or "USER/NAME"
    title = repo_id.rpartition("/")[2] if repo_id else described.name
    tag = pipeline_tag(model)
    results = [
        EvalResult(task_type=tag, dataset_type="validation", dataset_name="its training's validation", metric_type=name, metric_value=value)
        for name, value in described.metrics.items()
        if name != "images"  # which says of how many
    ]
    data = ModelCardData(
        library_name="atm-triton",
        license=license,
        pipeline_tag=tag,
        tags=[tag, "timm", *["image-segmentation"] * isinstance(model, MaskRCNN), *["arxiv:2203.06108"] * mixes],
        model_name=title if results else None,
        eval_results=results or None,
    )
    kind = f"A {NOUNS[described.task]}{' of videos' * is_of_videos(model)}, {described.name}."
    if mixes:
        kind += f" It mixes tokens by the [Active Token Mixer]({PAPER}) (AAAI 2023; [published code]({CODE}))."
    parts = [f"# {title}", kind, USE.format(place=f"hf-hub:{place}", file="clip.mp4" if is_of_videos(model) else "photo.jpg")]
    if described.task == CLASSIFICATION and not reports_of(model):
        parts.append(f'`timm.create_model("hf-hub:{place}", pretrained=True)` makes the same model after `import atmnet`.')
    parts.append(_table("model", _facts(model, described)))
    if described.metrics:
        parts += ["## Metrics", MEASURED, _table("metric", described.metrics)]
    if summary := getattr(model, "training_summary", None):
        parts += ["## Training", _table("", {name.replace("_", " "): value for name, value in summary.items()})]
    if described.pictures:
        parts += ["## Pictures", *(f"![]({picture_name(number)})" for number in range(len(described.pictures)))]
    parts += ["## Licence", f"`{license}`"]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _facts(model: nn.Module, described: About) -> dict[str, Any]:
    named = ", ".join(described.classes[:NAMED]) + ", ..." * (len(described.classes) > NAMED)
    sizes = {
        CLASSIFICATION: "{} x {}",
        SEGMENTATION: "the shorter side {}",
        DETECTION: "the shorter side {}, the longer at most {}",
    }
    facts: dict[str, Any] = {}
    if described.task != CLASSIFICATION:
        facts |= {{"model": "backbone"}.get(name, name): value for name, value in (parts_of(model) or {}).items() if value}
    elif isinstance(model, ATMNet):
        config: Any = model._hub_mixin_config
        facts |= {"blocks": ", ".join(map(str, config["depths"])), "channels": ", ".join(map(str, config["dims"]))}
    if (clips := described.clips) is not None:
        facts["clips"] = f"{clips.number} of {clips.frames} frames, {clips.sampling}, each in {clips.crops} square{'s' * (clips.crops > 1)}"
    if reports := reports_of(model):
        rows = [f"{row.name}: {row.was} -> {row.now}" for report in reports for row in report.changed]
        facts["swapped"] = "; ".join(rows[:NAMED]) + "; ..." * (len(rows) > NAMED)
    return facts | {
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M",
        "classes": f"{len(described.classes)}: {named}",
        "images": sizes[described.task].format(*described.size),
        "mean": ", ".join(f"{value:.4g}" for value in described.mean),
        "deviation": ", ".join(f"{value:.4g}" for value in described.std),
    }


def _table(heading: str, rows: dict[str, Any]) -> str:
    return "\n".join([f"| {heading} | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())])


def _cell(value: Any) -> str:
    """A figure or a name as a cell."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_cell, value))
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", r"\|").replace("<", "&lt;").split())
