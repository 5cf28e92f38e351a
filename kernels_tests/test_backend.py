"""Statements of the library about itself, and that it needs neither Triton nor a GPU."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
import textwrap

import pytest
import torch

from atm_triton import axial_gather, backend_info, reference, selftest, testing
from atm_triton.__main__ import main


def test_info_says_which_path_and_why():
    assert backend_info("cpu").backend == "pytorch" and "cpu" in backend_info("cpu").reason
    assert backend_info("meta").backend == "triton"
    double = backend_info("meta", torch.float64)
    assert double.backend == "pytorch" and "torch.float64" in double.reason


def test_info_command(capsys):
    assert main(["info", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "pytorch" in printed and torch.__version__ in printed


@pytest.mark.parametrize(
    ("device", "says"), [("banana", r"banana is no device: .*banana"), ("cuda:99", r"there is no cuda:99 here; torch .* sees \d+ GPUs")]
)
@pytest.mark.parametrize("command", ["info", "selftest"])
def test_devices_that_are_not_there(command, device, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([command, "--device", device])
    assert re.search(says, capsys.readouterr().err)


def test_selftest_passes(capsys):
    assert main(["selftest", "--device", "cpu"]) == 0
    assert "all operators are right" in capsys.readouterr().out


def test_selftest_prints_as_it_goes(capsys, monkeypatch):
    def ill(x, offset):
        raise KeyboardInterrupt

    first = {"offset_fc": testing.OPERATORS["offset_fc"]}
    monkeypatch.setattr(
        selftest, "OPERATORS", first | {"axial_gather_w": dataclasses.replace(testing.OPERATORS["axial_gather_w"], function=ill)}
    )
    with pytest.raises(KeyboardInterrupt):
        main(["selftest", "--device", "cpu"])
    assert re.findall(r"offset_fc +(\w+) .* ok\n", capsys.readouterr().out) == ["float32", "bfloat16", "float16"]


def test_one_draw_of_a_large_tensor_is_enough(monkeypatch):
    seeds, make = [], testing.make
    monkeypatch.setattr(testing, "make", lambda *arguments: seeds.append(arguments[4]) or make(*arguments))
    testing.plain_errors("axial_gather_w", testing.Shape(2, 7, 5, 8, 2), torch.bfloat16)
    testing.plain_errors("axial_gather_w", testing.Shape(16, 64, 64, 8, 2), torch.bfloat16)
    assert seeds == [0, 1, 2, 3, 0]


class NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return torch.full_like(dy, float("nan"))


@pytest.mark.parametrize(
    "function",
    [lambda x, o: axial_gather(x, o + 0.01, "w"), lambda x, o: axial_gather(x, NaNGradient.apply(o), "w")],
    ids=["offset", "NaN gradient"],
)
def test_selftest_can_fail(function, capsys, monkeypatch):
    broken = dataclasses.replace(testing.OPERATORS["axial_gather_w"], function=function)
    monkeypatch.setattr(selftest, "OPERATORS", {"axial_gather_w": broken})
    assert main(["selftest", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG" in printed and "all operators are right" not in printed


def test_every_tensor_is_held_to_its_own_error():
    exact, plain = (torch.ones(4, dtype=torch.float64),) * 2, (0.001, 0.02)

    def worst(*factors):
        return testing.worst(tuple((factor * e).float() for factor, e in zip(factors, exact, strict=True)), plain, exact)

    assert worst(1.01, 1.03) == (pytest.approx(0.01), pytest.approx(0.002, rel=1e-3))
    assert worst(1.001, 1.03) == (pytest.approx(0.03), pytest.approx(0.04, rel=1e-3))
    assert all(math.isnan(worst(*factors)[0]) for factors in ((math.nan, 1.03), (1.01, math.nan)))


WITHOUT_TRITON = """
    import sys, warnings
    warnings.simplefilter("error")
    sys.modules["triton"] = None  # importing it fails, as where it is not installed
    import atm_triton
    warnings.simplefilter("default")
    import torch
    x = torch.randn(2, 5, 7, 12, requires_grad=True)
    atm_triton.ActiveTokenMixer(12, share=3)(x).sum().backward()
    assert x.grad.isfinite().all()
    info = atm_triton.backend_info()
    import logging
    assert all(logging.getLogger(name).level == logging.NOTSET for name in ("torch._library.triton", "torch.utils.flop_counter"))
    assert info.triton is None and info.backend == "pytorch" and "not installed" in info.reason
    print("fine")
"""


def test_without_triton():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(WITHOUT_TRITON)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "fine", "")


def test_importing_is_silent_and_starts_nothing():
    done = subprocess.run([sys.executable, "-W", "error", "-c", "import atm_triton"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_device_of_the_tensors_is_used_not_the_current_one():
    x, offset = torch.randn(1, 4, 4, 8, device="cuda:1"), torch.zeros(1, 4, 4, 4, device="cuda:1")
    with torch.cuda.device(0):
        assert torch.equal(axial_gather(x, offset, "w"), x)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 40 * 2**30, reason="needs a GPU of 40 GB"
)
def test_more_than_2_31_elements():
    x = torch.empty(2**20, 4, 4, 130, device="cuda", dtype=torch.bfloat16).normal_()
    offset = torch.zeros(2**20, 4, 4, 1, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    y = axial_gather(x, offset + 1, "h")
    last = reference.axial_gather(x[-1:].cpu(), torch.ones(1, 4, 4, 1), "h")
    assert torch.equal(y[-1:].cpu(), last)
