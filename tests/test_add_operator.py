"""Adding an operator touches four places: one of a single line, ``y = 2 x``, is added in them in a copy of the repository, and the tests
of the table, the selftest, the benchmark, the costs and the documentation cover it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

DEFINITION = '''

def scaled_copy(x: Tensor) -> Tensor:
    """Tokens ``[B, H, W, C]`` times two."""
    return 2 * x
'''

OPERATOR = '''"""scaled_copy: y = 2 x. Programs own BLOCK_N tokens by BLOCK_C channels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.library import wrap_triton

from .. import flops, reference
from .._triton import jit, register_flop_formula, runs_kernels, tl, triton, triton_op
from ..tuning import tables
from . import checks


@jit
def _scaled_copy_fwd_kernel(
    x_ptr,  # [N, C], N = B * H * W tokens
    y_ptr,  # [N, C]
    N,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (n < N)[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + n[:, None] * C + c[None, :], mask=mask).to(tl.float32)
    tl.store(y_ptr + n[:, None] * C + c[None, :], (2 * x).to(y_ptr.dtype.element_ty), mask=mask)


_scaled_copy_bwd_kernel = _scaled_copy_fwd_kernel
KERNELS = {"scaled_copy": ("scaled_copy_fwd",), "scaled_copy_backward": ("scaled_copy_bwd",)}


@tables.distinct
def candidates(kernel: str, x: Tensor, groups: int) -> Iterator[dict[str, int]]:
    for tokens in (16, 32):
        yield dict(BLOCK_N=tokens, BLOCK_C=min(triton.next_power_of_2(int(x.shape[3])), 128), num_warps=4)


def _launch(kernel: str, x: Tensor) -> Tensor:
    if not runs_kernels(x):
        return reference.scaled_copy(x)
    x = x.contiguous()
    B, H, W = x.shape[:3]
    C = int(x.shape[3])
    y = torch.empty_like(x)
    config = tables.config(kernel, x, C, candidates)
    grid = (triton.cdiv(B * H * W, config["BLOCK_N"]), triton.cdiv(C, config["BLOCK_C"]))
    with torch.cuda.device_of(x):
        wrap_triton(_scaled_copy_fwd_kernel)[grid](x, y, B * H * W, C, **config)
    return y


@triton_op("scaled_copy")
def _scaled_copy(x: Tensor) -> Tensor:
    return _launch("scaled_copy_fwd", x)


@triton_op("scaled_copy_backward")
def _scaled_copy_backward(dy: Tensor) -> Tensor:
    return _launch("scaled_copy_bwd", dy)


_scaled_copy.register_autograd(lambda ctx, dy: _scaled_copy_backward(dy))
for _op in (torch.ops.atm_triton.scaled_copy, torch.ops.atm_triton.scaled_copy_backward):
    register_flop_formula(_op)(flops.Formula(per_value=lambda x, *_, **__: math.prod(x)))


def scaled_copy(x: Tensor) -> Tensor:
    """Double tokens ``[B, H, W, C]``."""
    checks.tensors("scaled_copy", x=x)
    checks.tokens("scaled_copy", "x", x)
    return _scaled_copy(*checks.to_autocast(x))
'''

ROW = """OPERATORS["scaled_copy"] = Operator(
    "scaled_copy",
    scaled_copy,
    reference.scaled_copy,
    lambda shape: {"x": shape.tokens},
    lambda x: 3 * reference.scaled_copy(x),
    elementwise=(1, 1),
    writes=[["y_ptr"]],
    writes_backward=[["y_ptr"]],
)
"""

OTHERS = """
import operators, torch, work
from rich.console import Console
from atm_triton import scaled_copy, selftest, testing
from atm_triton.profile import count_macs

selftest.OPERATORS = {"scaled_copy": testing.OPERATORS["scaled_copy"]}
assert selftest.selftest(torch.device("cpu"), Console(quiet=True))
assert next(least for least in operators.OPERATORS if least.name == "scaled_copy").layer(work.Tokens(1, 2, 3, 8, 4)).flops == 48

class Twice(torch.nn.Module):
    forward = staticmethod(scaled_copy)

assert count_macs(Twice(), torch.zeros(1, 2, 3, 8)) == 0
"""


def copy_with_operator(root: Path, row: bool = True) -> None:
    for folder in ("atm_triton", "bench", "docs", "kernels_tests", "models", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "results", "*.safetensors"))
    shutil.copy(ROOT / "pyproject.toml", root)
    library = root / "atm_triton"

    def edit(name: str, before: str, after: str) -> None:
        text = (library / name).read_text()
        assert text.count(before) == 1, (name, before)
        (library / name).write_text(text.replace(before, after))

    with (library / "reference.py").open("a") as file:
        file.write(DEFINITION)
    (library / "ops" / "scaled_copy.py").write_text(OPERATOR)
    if row:
        edit("testing.py", "\n\n# ---- inputs and results", f"\n{ROW}\n\n# ---- inputs and results")
        edit("testing.py", "reference, token_mix\n", "reference, scaled_copy, token_mix\n")
    edit("__init__.py", "from .ops.token_mix", "from .ops.scaled_copy import scaled_copy\nfrom .ops.token_mix")
    edit("__init__.py", '    "swap",\n', '    "scaled_copy",\n    "swap",\n')


def start(root: Path, *command: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(str(root / folder) for folder in ("", "models", "bench"))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def pytest_of(*arguments: str) -> tuple[str, ...]:
    return "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments


def test_four_places_suffice(tmp_path: Path) -> None:
    copy_with_operator(tmp_path)
    covering = "scaled_copy and not compile or every_operator_has_its_rows or public_name and atm_triton or from_below or plain_jit"
    files = [f"kernels_tests/test_{name}.py" for name in ("cases", "candidates", "graphs")] + ["tests/test_docs.py", "tests/test_house.py"]
    tests = start(tmp_path, *pytest_of("-m", "not exhaustive", "-k", covering, *files))
    others = start(tmp_path, "-c", OTHERS)
    said, complaint = tests.communicate()[0], others.communicate()[0]
    assert tests.returncode == 0, said
    assert others.returncode == 0, complaint


def test_a_missing_row_is_told(tmp_path: Path) -> None:
    """A missing definition or export fails as the row is read."""
    copy_with_operator(tmp_path, row=False)
    check = "from test_cases import test_every_operator_has_its_rows as check; check()"
    process = start(tmp_path, "-c", f"import sys; sys.path.insert(0, 'kernels_tests'); {check}")
    said = process.communicate()[0]
    assert process.returncode and "assert operators == {operator.op for" in said, said
