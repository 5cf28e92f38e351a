"""The rules of the house that a machine can keep."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    path for folder in ("atm_triton", "models", "train", "bench", "kernels_tests", "tests") for path in (ROOT / folder).rglob("*.py")
]
# What each part may import of the others: data flows one way.
MAY_IMPORT = {"atm_triton": set(), "models/atmnet": {"atm_triton"}, "train": {"atm_triton", "atmnet"}}
PARTS = {"atm_triton", "atmnet", "train", "bench", "kernels_tests", "tests"}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_nothing_imports_from_above(part):
    for path in (ROOT / part).rglob("*.py"):
        upward = (imported(path) & PARTS) - MAY_IMPORT[part] - {path.parts[-2]}
        assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_library_reads_no_environment_variable():
    for path in (ROOT / "atm_triton").rglob("*.py"):
        assert "environ" not in path.read_text() and "getenv" not in path.read_text(), path.name
