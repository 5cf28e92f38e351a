"""Weights go into a model as a whole, or it says what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

LISTED = 20  # names in a message


def unwrap(model: Any) -> Any:
    """The model inside the wrappers of torch.compile and of data parallelism."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def check_fit(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that lack some of the model's, have others, or others' shapes or kinds of numbers.

    Raises:
        ValueError: with the names and shapes, and how ``source`` is called.
    """
    own = model.state_dict()
    if "decode_head.conv_seg.weight" in own and any(name.startswith("head.classifier.") for name in weights):
        raise ValueError(f"{source} holds a segmentation network of the earlier layout, whose heads were others: train it again")
    problems = [f"missing: {name} {list(own[name].shape)}" for name in own if name not in weights]
    problems += [f"unexpected: {name} {list(weights[name].shape)}" for name in weights if name not in own]
    problems += [
        f"shape: {name} is {list(weights[name].shape)} in the checkpoint, {list(own[name].shape)} in the model"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    problems += [
        f"dtype: {name} is {weights[name].dtype} in the checkpoint, {own[name].dtype} in the model"
        for name in own
        if name in weights and own[name].is_floating_point() != weights[name].is_floating_point()
    ]
    if problems:
        more = len(problems) - LISTED
        listed = problems[:LISTED] + ([f"... and {more} more"] if more > 0 else [])
        if all("head.fc." in problem for problem in problems):
            listed.append("only the classifier differs: load with the checkpoint's number of classes, then model.reset_classifier(...)")
        if swapped := swapped_modules(weights) - swapped_modules(own):
            listed.append(_untold(swapped))
        raise ValueError("\n  ".join([f"{source} does not fit this {type(model).__name__}:", *listed]))


def swapped_modules(weights: Mapping[str, Tensor]) -> set[str]:
    """Names of the modules that are mixers with an offset layer of their own, as ``atm_triton.swap`` puts them in."""
    last = ".logits.fc2.weight", ".logits.weight"
    found = {name.removesuffix(end) for name in weights for end in last if name.endswith(end)}
    return {name for name in found if f"{name}.fc_c.weight" in weights and f"{name}.offset.weight" in weights}


def check_told(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse the weights of a swapped model, of which nothing tells how it was swapped."""
    if swapped := swapped_modules(weights):
        raise ValueError(f"{source}: {_untold(swapped)}")


def _untold(swapped: set[str]) -> str:
    names = ", ".join(sorted(swapped)[:3]) + ", ..." * (len(swapped) > 3)
    return (
        f"it holds mixers where the model has other layers ({names}): give the report of their swap to atmnet.open_model as swap=, or to "
        "a command as --swap; or swap the model first, as atm_triton.Report.apply does"
    )


def load_strict(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load all or nothing; raises as ``check_fit``."""
    check_fit(model, weights, source)
    model.load_state_dict(weights)
