"""Jobs of the benchmark, in the order of their importance."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import first_step
import limits
import networks
import operators
import torch
from about import MODE
from networks import Case
from operators import Row
from timing import clean_slate

Sizes = dict[tuple[int, int], int]  # height and width -> batch
# Batches of about as many tokens each.
SQUARE: Sizes = {(224, 224): 128}
OTHERS: Sizes = {(800, 1280): 6, (384, 384): 48, (512, 2048): 6}
SQUARE_CPU: Sizes = {(224, 224): 4}
OTHERS_CPU: Sizes = {(384, 384): 1, (512, 2048): 1, (800, 1280): 1}
WIDEST = "atmnet_l"  # whose stages have channels of their own
SQUARE_QUICK: Sizes = {(32, 32): 2}
OTHERS_QUICK: Sizes = {(64, 64): 2}


class Job(NamedTuple):
    """Measurements that are made together."""

    title: str
    dtype: torch.dtype
    run: Callable[[limits.Ceilings], list[Row]]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def chosen(*names: str) -> list[operators.Operator]:
    """Choose, of the operators that are measured, those with these names, or all others than token_mix."""
    return [operator for operator in operators.OPERATORS if (operator.name in names if names else operator.name != "token_mix")]


@functools.cache
def stages(model: str, batch: int, size: tuple[int, int]) -> list[limits.Tokens]:
    return limits.stages(limits.on_meta(model), batch, size)


@dataclass(frozen=True)
class Bench:
    """Makes jobs for one model on one device."""

    model: str
    device: torch.device
    mode: str = MODE  # of torch.compile
    seconds_operator: float = 0.5  # for each implementation
    seconds_network: float = 0.5

    def operator_jobs(
        self, some: Iterable[operators.Operator], dtype: torch.dtype, sizes: Sizes, at: Iterable[int] = (1, 2, 3, 4)
    ) -> list[Job]:
        """``at``: at the shapes of these stages."""
        jobs = []
        for operator, (size, batch) in itertools.product(some, sizes.items()):
            for stage in at:
                shape = stages(self.model, batch, size)[stage - 1]
                arguments = operator, shape, dtype, self.device, self.mode, self.seconds_operator
                title = f"{operator.name}, {shape}, {name_of(dtype)}"
                jobs.append(Job(title, dtype, functools.partial(operators.measure, *arguments)))
        return jobs

    def network_jobs(self, dtype: torch.dtype, sizes: Sizes, what: str, *implementations: str) -> list[Job]:
        """Jobs of all implementations in turns; one that is named alone, by itself."""
        jobs = []
        for size, batch in sizes.items():
            case = Case(what, size, batch, dtype, implementations or networks.ALL)
            arguments = self.model, case, self.device, self.mode, self.seconds_network
            alone = f", {implementations[0]}" if len(implementations) == 1 else ""
            jobs.append(Job(f"network, {case}{alone}", dtype, functools.partial(networks.measure, *arguments)))
        return jobs

    def first_step_job(self) -> Job:
        def run(_: limits.Ceilings) -> list[Row]:
            clean_slate(self.device)  # the process needs room
            note = first_step.benchmarks(self.model, str(self.device))
            return [dict(section="first step", name=self.model, what="first step", implementation="", note=note)]

        return Job("first step", torch.bfloat16, run)


def on_cpu(bench: Bench, quick: bool) -> list[Job]:
    square, others = (SQUARE_QUICK, OTHERS_QUICK) if quick else (SQUARE_CPU, OTHERS_CPU)
    dtype, every, some = torch.float32, (1,) if quick else (1, 2, 3, 4), (1,) if quick else (1, 3)
    jobs = bench.network_jobs(dtype, square, "inference") + bench.network_jobs(dtype, square, "training step", *networks.OURS)
    jobs += bench.network_jobs(dtype, others, "inference", "eager")
    jobs += bench.operator_jobs(chosen("token_mix"), dtype, square, every) + bench.operator_jobs(chosen("token_mix"), dtype, others, (1,))
    return jobs + bench.operator_jobs(chosen(), dtype, square, some)


def on_gpu(bench: Bench, quick: bool) -> list[Job]:
    """Jobs on a GPU; what the targets are about comes first."""
    square, others = (SQUARE_QUICK, OTHERS_QUICK) if quick else (SQUARE, OTHERS)
    every = (1,) if quick else (1, 2, 3, 4)
    jobs = []
    for dtype in (torch.bfloat16, torch.float32):
        jobs += bench.operator_jobs(chosen("token_mix"), dtype, square, every)
        jobs += bench.network_jobs(dtype, square, "inference") + bench.network_jobs(dtype, square, "training step")
        jobs += [bench.first_step_job()] if dtype == torch.bfloat16 else []
        jobs += bench.network_jobs(dtype, others, "inference") + bench.network_jobs(dtype, others, "training step")
        jobs += bench.operator_jobs(chosen("token_mix"), dtype, others, every) + bench.operator_jobs(chosen(), dtype, square, every)
        jobs += replace(bench, model=WIDEST).operator_jobs(chosen("token_mix"), dtype, square, every)
    return jobs
