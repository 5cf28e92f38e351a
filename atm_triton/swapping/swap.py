"""Put Active Token Mixers into a model that exists, and take them out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .convert import Converters, convert
from .layers import Block, PublishedMixer
from .published import is_published
from .replacement import Options, Unsuitable
from .report import Report, Row, macs, parameters

Target = type[nn.Module] | str | Callable[[str, nn.Module], bool]

STARTS = ("weights", "identity")
ORIGINAL = "_original"  # of a replacement; a tuple, so that what it holds is none of the model's modules
REPORTS = "_reports"  # of a model, for whatever saves it

OF_ONE = (ORIGINAL, "_published", "forward", "_compiled_call_impl")  # attributes that a published mixer and its replacement do not share


class Original(NamedTuple):
    module: nn.Module
    device: torch.device
    dtype: torch.dtype


def swap(
    model: nn.Module,
    target: Target | Iterable[Target] | None = None,
    *,
    share: int = 1,
    grid: tuple[int, int] | None = None,
    dense: bool = False,
    start: str = "weights",
    converters: Converters | None = None,
    example: Tensor | None = None,
) -> Report:
    """Replace modules inside ``model`` by Active Token Mixers, in place; ``unswap`` puts them back.

    A mixer of the published implementation, recognised by its structure, keeps its parameters, their names and its function, and runs on
    this library's operators. The others become mixers of the same widths that begin from the old weights (``convert.py`` says how):

    - convolutions of stride 1 that keep the size of their map; of a grouped or depthwise one the mixer has the groups;
    - attention of the vision transformers of timm, torchvision and transformers (5 or newer), where tokens before the grid get the mean of
      what the grid's tokens get;
    - attention of their Swins, whose blocks then mix whole maps;
    - whatever you give a converter for.

    A module that is in several places is replaced in all of them by one.

    New parameters are on the old ones' device and in their dtype, and initialised by torch's random numbers where the old weights say
    nothing (the offsets): make the optimizer afterwards, if more than published mixers change.

    Args:
        model: Is changed; if anything is raised, it is as it was.
        target: What to replace: a class, a pattern of names as in a shell (``"layer3.*.conv2"``), a predicate of name and module, or
            several of these. By default the published implementation's mixers.
        share: Neighbouring channels that share an offset, in new mixers.
        grid: Rows and columns of a vision transformer's tokens, where the model does not say them or takes images of another size.
        dense: Of a grouped convolution make a mixer without groups, in which every channel reaches every other: more parameters, but one
            operator rather than several.
        start: ``"weights"`` begins near the old layers, as said above; ``"identity"`` computes what they did, to rounding, and takes 1 x 1
            convolutions of stride 1 and ``nn.Linear`` on maps ``[B, H, W, C]`` alone.
        converters: Functions from a layer to the module that takes its place, by the layer's class.
        example: Images that the model takes, to count MACs before and after; nothing is computed with them.

    Returns:
        What was changed, what was left and why, parameters and MACs before and after; it prints as a table.

    Raises:
        ValueError: nothing matches ``target``, the model itself would be replaced, ``example`` does not go through it, or with
            ``start="identity"`` a matched module cannot begin so.
    """
    if not isinstance(model, nn.Module):
        advice = f": swap(timm.create_model({model!r}))" if isinstance(model, str) else ""
        raise TypeError(f"swap: model must be a torch.nn.Module, got {model!r}{advice}")
    if share < 1:
        raise ValueError(f"share must be at least 1, got {share}")
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(map(repr, STARTS))}, got {start!r}")
    options = Options(share, grid, dense, start)
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    matches = _matcher(target)
    matched = {module: names for module, names in places.items() if any(matches(name, module) for name in names)}
    if not matched:
        raise ValueError(_nothing_matches(model, target, places))

    new: dict[str, nn.Module] = {}
    changed: list[Row] = []
    left: list[Row] = []
    for module, names in matched.items():
        inside = next((name for name in new if names[0].startswith(f"{name}.")), None)
        try:
            if inside is not None:
                raise Unsuitable(f"inside {inside}, which is replaced")
            ancestors = [model.get_submodule(name) for name in _enclosing(names[0])]
            replacement = convert(module, ancestors, options, converters or {})
        except Unsuitable as reason:
            left += [Row(name, type(module).__name__, "left", str(reason)) for name in names]
            continue
        kind = type(replacement.old).__name__
        if replacement.old is model:
            raise ValueError(f"the model itself is a {kind}, and swap replaces modules inside a model: give torch.nn.Sequential(model)")
        parameter = next(chain(_own(*replacement[:2]).parameters(), replacement.new.parameters()))  # the old may have none
        vars(replacement.new)[ORIGINAL] = Original(replacement.old, parameter.device, parameter.dtype)
        for name in places[replacement.old]:
            new[name] = replacement.new
            changed.append(Row(name, kind, type(replacement.new).__name__, replacement.note))

    if start == "identity" and left:
        refused = "; ".join(f"{row.name} ({row.was}): {row.note}" for row in left[:3]) + "; ..." * (len(left) > 3)
        raise ValueError(f"start='identity' cannot begin with the function of {refused}. Narrow the target")
    before = parameters(model), None if example is None else macs(model, example)
    old = {name: model.get_submodule(name) for name in new}
    try:
        _put(model, new)
        after = parameters(model), None if example is None else macs(model, example)
    except BaseException:
        _put(model, old)
        raise
    report = Report(tuple(changed), tuple(left), before[0], after[0], before[1], after[1], options)
    if changed:
        remember(model, (*reports_of(model), report))
    return report


def reports_of(model: nn.Module) -> tuple[Report, ...]:
    """Reports of the swaps that made the model what it is, in order."""
    return vars(model).get(REPORTS, ())


def remember(model: nn.Module, reports: tuple[Report, ...]) -> None:
    vars(model)[REPORTS] = reports


def unswap(model: nn.Module) -> Report:
    """Put back what ``swap`` replaced, however often it was called: the same modules in their places.

    Parameters that the two had in common keep what was trained. What is put back follows the model if it was moved, cast, or switched
    between training and evaluation meanwhile.

    Returns:
        What was put back, and the parameters before and after; it prints as a table.
    """
    if ORIGINAL in vars(model):
        raise ValueError(f"this {type(model).__name__} itself stands for another module: unswap the model that it is in")
    rows: list[Row] = []
    before = parameters(model)
    while swapped := {name: module for name, module in model.named_modules(remove_duplicate=False) if ORIGINAL in vars(module)}:
        back = []
        for name, new in reversed(swapped.items()):  # what is inside another first, for which the other's original may have no place
            old = _original(new)
            _put(model, {name: old})
            back.append(Row(name, type(new).__name__, type(old).__name__, ""))
        rows += reversed(back)
    for module in model.modules():
        vars(module).pop(REPORTS, None)
    return Report(tuple(rows), (), before, parameters(model))


def _original(new: nn.Module) -> nn.Module:
    old, device, dtype = vars(new)[ORIGINAL]
    if isinstance(new, PublishedMixer):
        vars(old).update({name: value for name, value in vars(new).items() if name not in OF_ONE})
        return old
    if isinstance(new, Block):
        for name in new.SHARED:
            setattr(old, name, getattr(new, name))
    if new.training != old.training:
        for module in set(old.modules()) - set(new.modules()):
            module.training = new.training
    now = next(_own(new, new).parameters())
    if (now.device, now.dtype) != (device, dtype):
        _own(old, new).to(now.device, now.dtype)
    return old


def _own(module: Any, new: nn.Module) -> nn.Module:
    """Return what the two do not share: all of it, but of a Swin block the attention."""
    return getattr(module, new.MIXER) if isinstance(new, Block) else module


def _put(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        model.set_submodule(name, module)


def _enclosing(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in reversed(range(len(parts)))]


def _matcher(target: Any) -> Callable[[str, nn.Module], bool]:
    if target is None:
        return lambda name, module: is_published(module)
    if isinstance(target, type):
        return lambda name, module: isinstance(module, target)
    if isinstance(target, str):
        return lambda name, module: fnmatchcase(name, target)
    if callable(target) and not isinstance(target, nn.Module):
        return target
    if isinstance(target, nn.Module) or not isinstance(target, Iterable):
        raise TypeError(
            f"target must be a class, a pattern of names, a predicate or several of them, got a {type(target).__name__}: name it"
        )
    matchers = [_matcher(part) for part in target]
    return lambda name, module: any(matches(name, module) for matches in matchers)


def _nothing_matches(model: nn.Module, target: Any, places: Mapping[nn.Module, list[str]]) -> str:
    kind = type(model).__name__
    if target is None:
        swapped = any(isinstance(module, PublishedMixer) for module in places)
        reason = "they run on this library's operators already" if swapped else "give a target: a class, a pattern of names or a predicate"
        return f"{kind} has no mixers of the published implementation (atm_c, atm_h, atm_w, fusion, proj, proj_drop) to swap; {reason}"
    parts = [target] if isinstance(target, str) or callable(target) else list(target)
    if not parts:
        return "target is empty: give a class, a pattern of names, a predicate, or several of them"
    shown = [part if isinstance(part, str) else getattr(part, "__name__", repr(part)) for part in parts]
    names, classes = [name for names in places.values() for name in names], {type(module).__name__ for module in places}
    near = [get_close_matches(part, names, cutoff=0.4) for part in parts if isinstance(part, str)]
    near += [get_close_matches(part.__name__, classes, cutoff=0.4) for part in parts if isinstance(part, type)]
    found = ", ".join(match for matches in near for match in matches)
    return f"{kind} has no module that matches {', '.join(map(repr, shown))}" + (f"; near: {found}" if found else "")
