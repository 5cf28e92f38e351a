"""Runs the code on pages of the documentation, as a reader would who goes from top to bottom: ``python tests/pages.py PAGE.md ...``.

Blocks of ``python`` share a namespace, and blocks of ``{.bash .test}`` run in the same folder, an empty one. Blocks of ``bash`` and
``text`` only show something. Of Python, ``{.python .slow}`` is left out by the tests, and ``{.python .no-test}`` never runs, as it needs
what not everybody has; both must compile.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HEADERS = ("python", "{.python .slow}", "{.python .no-test}", "bash", "{.bash .test}", "text")
FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<header>[^\n`]*)\n(?P<code>.*?)^(?P=ticks)[ \t]*$", re.M | re.S)


class Block(NamedTuple):
    header: str
    code: str
    line: int  # of its first line of code


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: one is of a kind that nobody would run or knowingly leave, or does not end.
    """
    text = page.read_text(encoding="utf-8")
    found = [Block(m["header"].strip(), m["code"], text[: m.start("code")].count("\n") + 1) for m in FENCE.finditer(text)]
    for block in found:
        if block.header not in HEADERS:
            raise ValueError(f"{page}:{block.line - 1}: a block is one of {', '.join(HEADERS)}, not {block.header!r}")
    if text.count("```") != 2 * len(found):
        raise ValueError(f"{page}: a block begins within a line, is indented or does not end, so that it would not be run")
    return found


def run_page(page: Path, slow: bool = True) -> None:
    """Run a page in the current folder, with its slow blocks or without.

    Raises:
        AssertionError: a block fails; it names the page, the line, and the block's number among the page's.
    """
    runs = ("python", "{.python .slow}") if slow else ("python",)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page), 1):
        where = f"{page}:{block.line}, block {number}"
        code = "\n" * (block.line - 1) + block.code  # so that tracebacks show the page's own lines
        if block.header == "{.bash .test}":
            _run_bash(block.code, where)
        elif "python" in block.header:
            try:
                compiled = compile(code, str(page), "exec")
                if block.header in runs:
                    exec(compiled, namespace)
            except Exception as error:
                raise AssertionError(f"{where} fails: {type(error).__name__}: {error}") from error


def _run_bash(code: str, where: str) -> None:
    """Run code with this Python's programs first, as in an activated environment."""
    environment = os.environ | {"PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], env=environment, capture_output=True, text=True)
    print(done.stdout)
    if done.returncode:
        raise AssertionError(f"{where} ends with status {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    for name in map(Path, sys.argv[1:]):
        page = name.resolve()
        print(f"===== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            run_page(page)
