"""The cost model: what it was calibrated on, what it says for, and that it is told apart from what was measured."""

from __future__ import annotations

import csv

import cost_design
import cost_measured
import cost_model
import cost_resources
import pytest
import report
import torch
from cost_resources import Constant

from atm_triton.ops.token_mix.launch import candidates


def test_kernels_measured_on_an_h200():
    """Predictions agree but for fwd at stage 4."""
    measured = cost_measured.measured()
    ratios = {(t, name): cost_measured.predicted(t)[name] / us for (t, name), us in measured.items()}
    off = [key for key, ratio in ratios.items() if not 0.75 <= ratio <= 1.25]
    assert len(ratios) == 16 and off == [(cost_model.AT_224[3], "fwd")]


def test_todays_kernels_are_those_compiled():
    """Instructions within a tenth of the launch configuration that is the default, and as many programs as its registers allow."""
    with (report.RESULTS / "machine-code-triton-3.9.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["target"], row["dtype"]) == ("sm_90", "bf16")]
    names = {"gather": "token_mix_gather", "doffset": "token_mix_doffset", "scatter": "token_mix_doffset scatter", "dx": "token_mix_dx w"}
    for stage, t in enumerate(cost_model.AT_224, 1):
        x = torch.empty(t.B, t.H, t.W, t.C, dtype=torch.bfloat16, device="meta")
        for name, kernel in names.items():
            config = next(candidates(kernel.split(" ")[0], x, t.G))
            configuration = " ".join(f"{key}={value}" for key, value in config.items())
            found = (
                row for row in rows if (row["stage"], row["kernel"], row["configuration"]) == (f"stage {stage}", kernel, configuration)
            )
            (row,) = found
            resident, instructions, *_ = getattr(cost_design.compiled(t), name)
            if row["issued"]:  # of dx, it depends on the offsets
                assert instructions == pytest.approx(int(row["issued"]), rel=0.1), (stage, name)
            assert resident == round(float(row["occupancy"].rstrip("%")) / 100 * 64 / config["num_warps"]), (stage, name)


def test_the_gather_out_of_shared_memory_is_the_one_compiled():
    """Instructions within a tenth, and no more programs: another Triton than that of the table may need more registers."""
    with (report.RESULTS / "machine-code-triton-3.9.csv").open(newline="") as stream:
        names = "token_mix_gather_lines w", "token_mix_gather_lines h"
        rows = [row for row in csv.DictReader(stream) if row["target"] == "sm_90" and row["kernel"] in names]
    for stage, t in enumerate(cost_model.AT_224, 1):
        config = next(candidates("token_mix_gather_lines", torch.empty(1, t.H, t.W, t.C, dtype=torch.bfloat16, device="meta"), t.G))
        shared, words = cost_design.compiled(t).shared, config["BLOCK_E"] * config["CHANNELS"]
        tile = config["BLOCK_L"] * config["BLOCK_Q"], words, config["TOGETHER"]
        assert (shared.positions, shared.channels, cost_design.TOGETHER) == tile
        configuration = " ".join(f"{key}={value}" for key, value in config.items())
        found = [row for row in rows if (row["stage"], row["configuration"]) == (f"stage {stage}", configuration)]
        assert len(found) == 2
        assert shared.instructions == pytest.approx(sum(float(row["issued"]) for row in found) / 2, rel=0.1), stage
        assert all(shared.resident <= float(row["occupancy"].rstrip("%")) / 100 * 64 / config["num_warps"] for row in found), stage


@pytest.mark.parametrize("stages", [cost_model.AT_224, cost_model.AT_800X1280])
def test_the_default_is_the_cheapest_predicted(stages):
    """Defaults cost at most a twentieth more than the cheapest."""
    for t in stages:
        forward, backward = (sum(parts.values()) for parts in cost_model.defaults(t))
        costs = {title: sum(parts.values()) for title, parts in cost_design.alternatives(t).items()}
        assert forward <= 1.05 * min(us for title, us in costs.items() if title.startswith("forward")), t
        assert backward <= 1.05 * min(us for title, us in costs.items() if title.startswith("backward")), t


def test_every_constant_says_where_it_comes_from():
    constants = {name: value for name, value in (vars(cost_resources) | vars(cost_design)).items() if isinstance(value, float)}
    assert len(constants) > 20 and all(isinstance(value, Constant) for value in constants.values())
    assert {value.origin for value in constants.values()} == {"measured", "derived", "assumed"}
    assert all(value.unit and value.source for value in constants.values())


def test_ceilings_are_those_measured():
    rows = report.read(report.RESULTS / "nvidia-h200-2026-11-26.csv")
    ceilings = {row["what"]: row["gb_per_s"] or row["tflop_per_s"] for row in rows if row["section"] == "ceiling"}
    assert 1e3 * ceilings["copy"] == pytest.approx(cost_resources.BANDWIDTH, rel=1e-3)
    assert 1e6 * ceilings["matrix product"] == pytest.approx(cost_resources.GEMM_RATE, rel=1e-3)


def test_token_mix_as_it_was_measured():
    """Predictions of the two stages that were timed as a whole."""
    rows = report.read(report.RESULTS / "nvidia-h200-2026-11-26.csv")
    timed = [row for row in rows if row["section"] == "operator" and row["implementation"] == "compiled"]
    for row in timed:
        assert 0.7 < cost_model.predicted_ms(row["shape"], row["dtype"], row["what"], row["device"], row["commit"]) / row["p50_ms"] < 1.3
    assert len(timed) == 4


@pytest.mark.parametrize(
    "of",
    [
        ("128x56x56x64/G32", "float32", "NVIDIA H200"),
        ("128x56x56x64/G32", "bfloat16", "NVIDIA A100"),
        ("6x9x9x60/G30", "bfloat16", "NVIDIA H200"),
    ],
)
def test_nothing_is_predicted_of_what_is_not_known(of):
    shape, dtype, device = of
    assert cost_model.predicted_ms(shape, dtype, "forward", device) is None


@pytest.mark.parametrize("stages", [cost_model.AT_224, cost_model.AT_800X1280])
def test_no_design_is_faster_than_the_limit(stages):
    for t in stages:
        forward, both = (
            1e6 * cost_model.limit([cost_model.token_mix(t)], 2, backward, cost_resources.CEILINGS) for backward in (False, True)
        )
        for title, parts in cost_design.alternatives(t).items():
            assert sum(parts.values()) > (forward if title.startswith("forward") else both - forward), title


def test_the_report_tells_predicted_from_measured():
    text = report.markdown(report.read(report.RESULTS / "nvidia-h200-2026-11-26.csv"), "title")
    assert "the prediction is bench/cost_model.py's, not a measurement" in text
    assert "| name | what | shape | dtype | measured | predicted |" in text
    assert "predicted" not in report.markdown(report.read(report.newest(report.RESULTS)["cpu"]), "title")


def test_command(capsys):
    cost_model.main()
    printed = capsys.readouterr().out
    assert "predicted, never measured" in printed and "assumed" in printed and "128x14x14x320/G80" in printed
