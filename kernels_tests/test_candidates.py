"""Launch configurations that tuning may choose: valid, no two the same, and right."""

from __future__ import annotations

import itertools
from importlib import import_module

import pytest
import torch
from cases import INTERPRETER

from atm_triton.testing import OPERATORS, Shape, assert_as_exact, exact_gradients, gradients, make, plain_errors
from atm_triton.tuning import tables

MODULES = {name: import_module(f"atm_triton.ops.{name}") for name in sorted({operator.op for operator in OPERATORS.values()})}
KERNELS = sorted({(name, kernel) for name, module in MODULES.items() for kernels in module.KERNELS.values() for kernel in kernels})
FOLDED = {1: Shape(2, 1, 34, 4, 2), 2: Shape(2, 6, 6, 4, 2)}  # by the mixer of so many axes
SHARED = Shape(1, 2, 16, 1, 4)  # gathered out of shared memory by the mixer, in 16 bits
CHANNELS = [(64, 2), (96, 2), (320, 4), (768, 8), (15, 3), (8, 8), (1, 1), (256, 128)]  # and how many share an offset


@pytest.mark.parametrize("module,kernel", KERNELS)
@pytest.mark.parametrize("C,S", CHANNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_candidates_are_valid_distinct_and_few(module, kernel, C, S, dtype):
    groups = {"branch_fusion": C, "offset_fc": 2 * C // S}.get(module, C // S)
    x = torch.empty(8, 56, 56, C, device="meta", dtype=dtype)
    found = list(MODULES[module].candidates(kernel, x, groups))
    assert 1 <= len(found) <= 10
    assert all(found[i] != found[j] for i in range(len(found)) for j in range(i))
    function = getattr(import_module(MODULES[module].candidates.__module__), f"_{kernel}_kernel", None)
    for config in found:
        assert config.keys() - {"num_stages"} == found[0].keys() - {"num_stages"}, config
        assert all(type(value) is int for value in config.values()), config
        blocks = {name: size for name, size in config.items() if name.startswith("BLOCK_")}
        assert all(size >= 1 and size & (size - 1) == 0 for size in blocks.values()), config
        if function is None:  # a choice between algorithms
            assert not blocks and not config.keys() & {"num_warps", "num_stages"}
            continue
        assert config["num_warps"] in (1, 2, 4, 8), config
        assert set(blocks) <= {parameter.name for parameter in function.params if parameter.is_constexpr}, config
        if "tl.dot(" in function.src:
            assert min(blocks.values()) >= 16, config


def test_every_launch_is_of_a_kernel_that_its_operator_names():
    with INTERPRETER.active(), tables.recorded() as found:
        for operator, shape in itertools.product(OPERATORS.values(), (Shape(1, 2, 3, 2, 2), FOLDED[2])):
            for deterministic in (False, True):
                torch.use_deterministic_algorithms(deterministic)
                gradients(operator.function, make(operator, shape, torch.float32, "cpu"))
        gradients(OPERATORS["token_mix"].function, make(OPERATORS["token_mix"], SHARED, torch.bfloat16, "cpu"))
    assert {key.partition("/")[0] for key in found} == {kernel for _, kernel in KERNELS}


SECOND, OTHERS = slice(1, 2), slice(2, None)  # the first of each kernel is what all other tests run


@pytest.mark.parametrize("which", [SECOND, pytest.param(OTHERS, marks=pytest.mark.exhaustive)], ids=["second", "others"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.exhaustive)], ids=str)
# Configurations of three axes are those of two, and take the interpreter longest.
@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "token_mix_3d"])
def test_every_candidate_is_right(name, dtype, which, monkeypatch):
    operator = OPERATORS[name]
    chosen: dict[str, dict[str, int]] = {}
    monkeypatch.setattr(tables, "table", lambda device: chosen)
    tried: dict[str, list[tables.Config]] = {}
    for shape in (Shape(2, 3, 6, 4, 5), *([FOLDED[operator.axes], SHARED] if operator.op == "token_mix" else [])):
        tried |= try_candidates(operator, name, shape, dtype, which, chosen)
    kernels = MODULES[operator.op].KERNELS
    expected = {*kernels[operator.op], *kernels[f"{operator.op}_backward"]}
    if dtype == torch.float32:
        expected -= {"token_mix_gather_lines"}  # which the default strategy does not take
    assert {key.partition("/")[0] for key in tried} >= expected
    assert any(len(candidates) > 1 for candidates in tried.values())


def try_candidates(operator, name, shape, dtype, which, chosen) -> dict[str, list[tables.Config]]:
    """Run each candidate by itself, and return those that were tried."""
    inputs = make(operator, shape, dtype, "cpu")
    exact = exact_gradients(operator.definition, inputs)

    def check(what: str) -> dict[str, list[tables.Config]]:
        with INTERPRETER.active(), tables.recorded() as found:
            actual = gradients(operator.function, inputs)
        for a, plain, e in zip(actual, plain_errors(name, shape, dtype), exact, strict=True):
            assert_as_exact(a, plain, e, what)
        return found

    tried: dict[str, list[tables.Config]] = {}
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        for key, candidates in check("default").items():
            for config in [] if key in tried else candidates[which]:
                chosen[key] = config
                assert key in check(f"{key} {config}")
            tried[key] = candidates
            chosen.pop(key, None)
    return tried
