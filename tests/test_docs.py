"""The documentation's code runs, and its reference leaves nothing out; what exporting writes there, test_export.py tests."""

from __future__ import annotations

import json
import os
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from pages import blocks, run_page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page from top to bottom, in a folder that has the repository's train/."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "models")]))
    (tmp_path / "train").symlink_to(ROOT / "train")
    run_page(page, slow=False)


@pytest.mark.parametrize("use", ["train", "swap", "backbone", "kernels"])
def test_each_use_has_a_tutorial_that_runs_something(use: str) -> None:
    assert any(block.header == "python" for block in blocks(DOCS / "tutorials" / f"{use}.md"))


@pytest.mark.parametrize("module,page", [("atm_triton", "atm_triton"), ("atmnet", "atmnet"), ("atmnet.offsets", "offsets")])
def test_the_reference_has_every_public_name(module: str, page: str) -> None:
    text = (DOCS / "reference" / f"{page}.md").read_text()
    public = set(import_module(module).__all__)
    named = set(re.findall(r"^::: [\w.]+\.(\w+)$", text, re.M)) | set(re.findall(rf"`{module}\.(\w+)`", text))
    if whole := re.search(rf"^::: {module}\n(?: .*\n)*? +filters: (.*)$", text, re.M):  # the operators: all but what a filter hides
        hidden = [pattern.removeprefix("!") for pattern in json.loads(whole[1])]
        named |= {name for name in public if not any(re.search(pattern, name) for pattern in hidden)}
    assert not public - named


def write(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


@pytest.mark.parametrize(
    "failing,message",
    [
        ("```python\nassert x == 2\n```", "page.md:6, block 2 fails: AssertionError"),
        ("```python\nx +\n```", "page.md:6, block 2 fails: SyntaxError"),
        ("```{.python .no-test}\nx +\n```", "page.md:6, block 2 fails: SyntaxError"),
        ("```{.bash .test}\nfalse | true\n```", "page.md:6, block 2 ends with status 1"),
    ],
)
def test_a_block_that_fails_is_named(tmp_path: Path, failing: str, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        run_page(write(tmp_path, f"```python\nx = 1\n```\n\n{failing}\n"))


@pytest.mark.parametrize(
    "text,message",
    [
        ("```py\nx = 1\n```\n", "page.md:1: a block is one of python, "),
        ("```\nx = 1\n```\n", "not ''"),
        ("- item\n\n    ```python\n    x = 1\n    ```\n", "would not be run"),
        ("```python\nx = 1\n", "does not end"),
    ],
)
def test_no_block_is_passed_over(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run_page(write(tmp_path, text))
