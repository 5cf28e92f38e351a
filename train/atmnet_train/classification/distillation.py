"""Distillation: the model learns a teacher's answers in place of the labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from atmnet import canonical_name, open_classifier
from torch import Tensor, nn

from ..common.errors import UsageError
from ..common.models import check_model_name
from ..common.weights import shorten
from .settings import DistillationSettings


class Teacher:
    """Knows what to answer, and how far from it an answer is. It is not trained, and no part of any checkpoint."""

    def __init__(self, model: nn.Module, temperature: float, accelerator: Accelerator) -> None:
        self.model, self.temperature, self.accelerator = model.eval().requires_grad_(False).to(accelerator.device), temperature, accelerator

    def loss(self, logits: Tensor, images: Tensor) -> Tensor:
        """Divergence of the two softened distributions, as large at every temperature (Hinton et al., 2015)."""
        T = self.temperature
        with torch.no_grad(), self.accelerator.autocast():
            wanted = self.model(images)
        given, wanted = F.log_softmax(logits.float() / T, -1), F.log_softmax(wanted.float() / T, -1)
        return T * T * F.kl_div(given, wanted, log_target=True, reduction="batchmean")


def open_teacher(
    settings: DistillationSettings,
    accelerator: Accelerator,
    num_classes: int,
    classes: Mapping[str, int] | None,
    normalisation: tuple[Any, Any],
) -> Teacher | None:
    """The teacher, if there is one, which must know the same classes and take images as the model does."""
    if settings.teacher is None:
        return None
    name = settings.teacher
    model = read_teacher(name)
    if (known := model.num_classes) != num_classes:
        raise UsageError(f"--teacher {name} knows {known} classes, the data has {num_classes}: train one on these images")
    labels = model.pretrained_cfg.get("label_names")
    if labels and classes and list(labels) != sorted(classes, key=classes.__getitem__):
        raise UsageError(f"--teacher {name} knows other classes ({shorten(list(labels))}) than the data ({shorten(list(classes))})")
    config = model.pretrained_cfg
    for kind, own, other in zip(("mean", "std"), normalisation, (config.get("mean"), config.get("std")), strict=True):
        if other is not None and tuple(own) != tuple(other):
            raise UsageError(f"--teacher {name} takes images of {kind} {tuple(other)}, the model of {tuple(own)}: they see the same batch")
    return Teacher(model, settings.temperature, accelerator)


def read_teacher(name: str) -> Any:
    if Path(name).exists():
        try:
            return open_classifier(name)
        except (OSError, ValueError) as error:
            raise UsageError(f"--teacher {name}: {error}") from error
    try:
        check_model_name(name)
    except UsageError as error:
        raise UsageError(f"--teacher {name}: there is no such checkpoint, nor such a model of timm") from error
    try:
        return timm.create_model(canonical_name(name), pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:  # none there are, or none that can be had
        raise UsageError(f"--teacher {name}: its pretrained weights cannot be had: {error}") from error
