"""One network at one size: its implementations side by side, if they compute the same, and others of its class."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import limits
import timm
import torch
from limits import Ceilings
from operators import Row, wrong
from published import plain, published
from timing import WITHOUT_GRAPHS, clean_slate, peak_memory, quantiles, what_failed
from torch import Tensor, nn

from atm_triton import OffsetFC
from atm_triton.testing import error
from atm_triton.tuning.calls import OFFSET_SPREAD

OURS = ("published", "plain, compiled", "eager", "compiled")
OTHERS = {"Swin-T, compiled": "swin_tiny_patch4_window7_224", "ConvNeXt-T, compiled": "convnext_tiny"}
ALL = (*OURS, *OTHERS)
DROP_PATH = 0.1  # of all, as the paper trains ATMNet-T


@dataclass(frozen=True)
class Case:
    """Implementations that are timed together, in turns."""

    what: str  # "inference" or "training step"
    size: tuple[int, int]
    batch: int
    dtype: torch.dtype
    implementations: tuple[str, ...] = ALL

    def __str__(self) -> str:
        return f"{self.what}, {self.size[0]}x{self.size[1]}, batch {self.batch}, {str(self.dtype).removeprefix('torch.')}"


def create(name: str, case: Case, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    more: dict[str, Any] = dict(img_size=case.size) if name.startswith("swin") else {}
    model = timm.create_model(name, drop_path_rate=DROP_PATH, **more)
    for module in model.modules():
        if isinstance(module, OffsetFC):  # fresh offsets are about zero: a gather would only read its own token
            nn.init.normal_(module.weight, std=OFFSET_SPREAD * module.weight.shape[1] ** -0.5)
    return model.to(device, case.dtype)


def judge(reference: nn.Module, images: Tensor) -> Callable[[nn.Module], str]:
    """Says what is wrong with a model, by the tests' rule: all must compute the same function, or a benchmark would say nothing."""
    with torch.no_grad():
        expected = reference.eval()(images)
        exact = reference.double()(images.double())
        plain = error(expected, exact)
        reference.to(images.dtype)

    def wrong_with(model: nn.Module) -> str:
        with torch.no_grad():
            return wrong((model.eval()(images),), (plain,), (exact,))

    return wrong_with


def _inference(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        model(images)


def _training(model: nn.Module, images: Tensor) -> None:
    target = torch.arange(images.shape[0], device=images.device) % 10
    nn.functional.cross_entropy(model(images).float(), target).backward()
    model.zero_grad(set_to_none=True)


def measure(model: str, case: Case, device: torch.device, mode: str, seconds: float, ceilings: Ceilings) -> list[Row]:
    """A row for each implementation; without times where something is wrong."""
    clean_slate(device)
    compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False, mode=mode)
    ours = create(model, case, device)
    reference = plain(ours)
    made: dict[str, Callable[[], nn.Module]] = {
        "published": lambda: published(ours),
        "plain, compiled": lambda: compiled(reference),
        "eager": lambda: ours,
        "compiled": lambda: compiled(ours),
    } | {name: lambda other=other: compiled(create(other, case, device)) for name, other in OTHERS.items()}
    images = torch.randn(case.batch, 3, *case.size, device=device, dtype=case.dtype)
    about = dict(section="network", what=case.what, name=model, shape=f"{case.size[0]}x{case.size[1]}", batch=case.batch)
    about |= dict(dtype=str(case.dtype).removeprefix("torch."))
    wrong_with = judge(reference, images)
    if note := wrong_with(ours):
        return [about | dict(implementation="eager", note=note)]

    training = case.what == "training step"
    steps, notes, memory = {}, {}, {}
    for name in case.implementations:
        try:
            candidate = made[name]()
            # A compiled training step drops paths at random: the inference checks its forward pass, the operators its gradients.
            checked = name == "published" if training else name in OURS and name != "eager"  # which is ours, checked above
            if checked and (note := wrong_with(candidate)):
                notes[name] = note
                continue
            step = functools.partial(_training if training else _inference, candidate.train(training), images)
            for _ in range(2):  # the first compiles
                step()
            resident = sum(t.nbytes for t in [*candidate.parameters(), *candidate.buffers(), images])
            if mode in WITHOUT_GRAPHS:
                memory[name] = peak_memory(step, device, resident)
            steps[name] = step
        except Exception as error:  # one implementation's trouble must not end the others' measurement
            notes[name] = what_failed(error)
            ours.zero_grad(set_to_none=True)
    layers = [layer for part in limits.network(ours, case.batch, case.size).values() for layer in part]
    work = limits.total(layers, case.dtype.itemsize, training)
    limit = 1e3 * limits.limit(layers, case.dtype.itemsize, training, ceilings)
    rows = []
    for name, t in quantiles(steps, device, seconds, notes).items():
        row = about | dict(implementation=name, p20_ms=t.p20, p50_ms=t.p50, p80_ms=t.p80, images_per_s=1e3 * case.batch / t.p50)
        row["peak_mib"] = memory.get(name)
        if name not in OTHERS:
            row |= dict(
                gb_per_s=work.bytes / t.p50 / 1e6, tflop_per_s=work.flops / t.p50 / 1e9, limit_ms=limit, share_of_limit=limit / t.p50
            )
        rows.append(row)
    return rows + [about | dict(implementation=name, note=note) for name, note in notes.items()]
