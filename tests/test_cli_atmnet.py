"""python -m atmnet"""

from __future__ import annotations

import subprocess
import sys

import pytest
from atmnet.__main__ import main

ROWS = [  # name, parameters (M) and the paper's, MACs (G) and the paper's, the paper's top-1
    ["atmnet_xt", "15.35", "15", "2.180", "2.2", "79.7"],
    ["atmnet_t", "27.15", "27", "3.972", "4.0", "82.0"],
    ["atmnet_s", "38.63", "39", "6.913", "6.9", "83.1"],
    ["atmnet_b", "52.15", "52", "10.148", "10.1", "83.5"],
    ["atmnet_l", "76.24", "76", "12.386", "12.3", "83.8"],
]


def rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if line.startswith("│")]


def test_the_models_are_printed():
    done = subprocess.run([sys.executable, "-m", "atmnet"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    found = rows(done.stdout)
    assert found[:5] == ROWS
    clips = ["all", "16.66", "37.7"], ["last", "16.61", "36.7"], ["none", "15.35", "34.9"]  # of 16 frames, of which an image has 2.180
    assert found[5:8] == [["atmnet_xt_video", *costs] for costs in clips]


# Linear in the tokens but for the classifier and the branch logits: at 384 x 384, 36.4 for atmnet_l in the paper's table 1.
@pytest.mark.parametrize(
    "size,title,xt,large",
    [pytest.param("384", "384 x 384", "6.402", "36.388", marks=pytest.mark.exhaustive), ("256x128", "256 x 128", "1.424", "8.091")],
)
def test_image_size(capsys, size, title, xt, large):
    main(["models", "--img-size", size])
    printed = capsys.readouterr().out
    assert title in printed and "paper: table 1, at 224 x 224" in printed
    table = rows(printed)[:5]
    assert (table[0][3], table[-1][3]) == (xt, large)
    assert [row[1] for row in table] == [row[1] for row in ROWS]


@pytest.mark.parametrize(
    "arguments,message",
    [(["2"], "at least 3 pixels, got '2'"), (["8", "8"], "unrecognized"), (["big"], "got 'big'"), ([], "expected one")],
)
def test_wrong_image_size(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["models", "--img-size", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
