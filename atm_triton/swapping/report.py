"""What ``swap`` did, as a table."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich.console import Console, Group
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


class Row(NamedTuple):
    """A module that the target matched."""

    name: str
    was: str  # its class
    now: str  # the class in its place, or "left"
    note: str  # what to know about it; of what was left, why


@dataclass(frozen=True)
class Report:
    """What ``swap`` answers; printed, it is a table."""

    changed: tuple[Row, ...]
    left: tuple[Row, ...]
    parameters_before: int
    parameters_after: int
    macs_before: int | None = None  # multiply-adds of the example, if one was given
    macs_after: int | None = None

    def __rich__(self) -> Group:
        table = Table()
        for heading in ("modules", "was", "is", "note"):
            table.add_column(heading)
        for rows in (self.changed, self.left):
            groups: dict[tuple[str, ...], list[str]] = {}
            for name, was, now, note in rows:
                groups.setdefault((was, now, note), []).append(name or "(the model)")
            for outcome, names in groups.items():
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                table.add_row(", ".join(names[:3]) + more, *outcome)
        counted = f"parameters {self.parameters_before / 1e6:.2f} M before, {self.parameters_after / 1e6:.2f} M after"
        if self.macs_before is not None and self.macs_after is not None:
            counted += f"; multiply-adds {self.macs_before / 1e9:.3f} G before, {self.macs_after / 1e9:.3f} G after"
        return Group(table, f"{len(self.changed)} changed, {len(self.left)} left; {counted}")

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=140)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, example: Tensor) -> int:
    """Of convolutions, matrix products and attention; gathering, fusing, norms and activations cost none. Nothing is computed.

    Raises:
        ValueError: the model does not take the example.
    """
    import torchvision  # noqa: F401 (its deform_conv2d is counted)

    operators = torch.ops.atm_triton
    products = {
        operators.offset_fc: lambda x, norm_weight, norm_bias, weight, *_, **__: 2 * math.prod(x) * weight[0],
        operators.axial_gather: lambda *_, **__: 0,
        operators.branch_fusion: lambda *_, **__: 0,
        operators.token_mix: lambda x, offset, *weights, **__: 2 * x[0] * (4 * x[1] * x[2] ** 2 + 4 * x[2] * weights[5][0]),
        torch.ops.torchvision.deform_conv2d: _deform_conv2d_flops,
    }
    state: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():  # each once: functional_call does not put back what it ties in a module of two names
        for name, t in [*module.named_parameters(prefix, recurse=False), *module.named_buffers(prefix, recurse=False)]:
            state[name] = t.to("meta")
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=products) as counter:
            functional_call(model, state, example.to("meta"), tie_weights=False)
    except Exception as error:
        raise ValueError(f"the example {list(example.shape)} does not go through the model: {error}") from error
    return counter.get_total_flops() // 2


def _deform_conv2d_flops(x: torch.Size, weight: torch.Size, *_, out_shape: torch.Size, **__) -> int:
    return 2 * math.prod(weight[1:]) * math.prod(out_shape)
