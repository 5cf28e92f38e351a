"""Operators of the table, on every path, shape and dtype."""

from __future__ import annotations

import math

import pytest
import torch
from cases import GPU, INTERPRETER, PATHS, PLAIN, SHAPES, STAGE_3, VOLUMES, Path, on_gpu

import atm_triton
from atm_triton.ops.token_mix.strategy import LONGEST_LINE
from atm_triton.testing import OPERATORS, Shape, assert_as_exact, error, exact_gradients, gradients, make, plain_errors

NAMES = list(OPERATORS)
# Three axes take the interpreter longest, and most of what is wrong with them is wrong of others too.
NAMED = [pytest.param(name, marks=pytest.mark.exhaustive if name == "token_mix_3d" else ()) for name in NAMES]
OF_OTHER_AXES = [Shape(2, 3, 13, 5, 3), Shape(2, 2, 5, 5, 3), Shape(0, 8, 4, 1, 2)]  # at once; the rest with the exhaustive tests
# Gradients of so few channels are a number or two, of which the rule compares single roundings.
FEW = {"token_mix_1d": Shape(1, 1, 9, 3, 1)}


def marks(name: str, path: Path, shape: Shape) -> list[pytest.MarkDecorator]:
    long = shape is STAGE_3 or (OPERATORS[name].axes != 2 and shape not in OF_OTHER_AXES)
    return [*(on_gpu.marks if path is GPU else ()), *([pytest.mark.exhaustive] if long else [])]


RUNS = [
    pytest.param(*run, marks=marks(name, path, shape), id="-".join(map(str, run)))
    for name in NAMES
    for path in (PLAIN, INTERPRETER, GPU)
    for dtype in path.dtypes
    for deterministic in ([False, True] if OPERATORS[name].writes_deterministic and path is not PLAIN else [False])
    for shape in {1: SHAPES, 2: [*SHAPES, STAGE_3], 3: VOLUMES}[OPERATORS[name].axes]
    if shape != FEW.get(name)
    for run in [(name, path, dtype, deterministic, shape)]
]
SMALL = Shape(2, 5, 7, 8, 2)


@pytest.mark.parametrize("name,path,dtype,deterministic,shape", RUNS)
def test_forward_and_gradients(name, shape, path, dtype, deterministic):
    operator = OPERATORS[name]
    inputs = make(operator, shape, dtype, path.device)
    torch.use_deterministic_algorithms(deterministic)
    with path.active():
        actual = gradients(operator.function, inputs)
    exact = exact_gradients(operator.definition, tuple(t.detach().cpu() for t in inputs))
    for i, (a, plain, e) in enumerate(zip(actual, plain_errors(name, shape, dtype), exact, strict=True)):
        assert a.dtype == dtype
        assert_as_exact(a, plain, e, "result" if i == 0 else f"gradient of input {i - 1}")


LINES = [Shape(1, 1, LONGEST_LINE + 6, 1, 4), Shape(1, 20, 2, 2, 2), Shape(1, 3, 4, 2, 9)]  # long ones; columns; many channels an offset


@pytest.mark.parametrize("shape", LINES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lines_of_the_mixer_in_a_fixed_order(dtype, shape):
    operator = OPERATORS["token_mix"]
    inputs = make(operator, shape, dtype, "cpu")
    torch.use_deterministic_algorithms(True)
    with INTERPRETER.active():
        actual = gradients(operator.function, inputs)
    for a, plain, e in zip(actual, plain_errors("token_mix", shape, dtype), exact_gradients(operator.definition, inputs), strict=True):
        assert_as_exact(a, plain, e)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_definition_is_told_apart(name):
    operator = OPERATORS[name]
    for shape in (shape for shape in SHAPES if shape.B):
        inputs = make(operator, shape, torch.bfloat16, "cpu")
        exact = operator.definition(*(t.double() for t in inputs))
        with pytest.raises(AssertionError, match="relative error"):
            assert_as_exact(operator.wrong(*inputs), operator.definition(*inputs), exact)


@pytest.mark.parametrize("name", NAMES)
def test_explicit_gradients(name):
    """The plain path's written-out backward against finite differences."""
    for shape in (Shape(2, 3, 4, 3, 2), Shape(1, 5, 3, 2, 1)) if OPERATORS[name].axes < 3 else (Shape(1, 2, 3, 2, 2),):
        assert torch.autograd.gradcheck(OPERATORS[name].function, make(OPERATORS[name], shape, torch.float64, "cpu"))


def strided(t: torch.Tensor, how: str) -> torch.Tensor:
    """The same values behind other strides."""
    if how == "sliced":
        return torch.cat([t.new_full(t.shape, float("nan")), t, t.new_full(t.shape, float("nan"))], -1)[..., t.shape[-1] : 2 * t.shape[-1]]
    if how == "permuted":
        return t.mT.contiguous().mT if t.ndim > 1 else t
    return t[:1].expand(t.shape)  # one row for all


@pytest.mark.parametrize("how", ["sliced", "permuted", "expanded"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_any_strides(name, how, path):
    operator = OPERATORS[name]
    shape = SMALL if operator.axes < 3 else VOLUMES[0]
    values = [strided(t.detach(), how) for t in make(operator, shape, torch.float32, path.device)]
    views = tuple(t.requires_grad_() for t in values)
    copies = tuple(t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in values)
    with path.active():
        y = operator.function(*views)
        upstream = strided(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y), how)
        actual = y, *torch.autograd.grad(y, views, upstream)
        y = operator.function(*copies)
        expected = y, *torch.autograd.grad(y, copies, upstream.contiguous())
    for a, e in zip(actual, expected, strict=True):  # of a GEMM that takes its operands in another order
        assert error(a, e.detach().cpu().double()) < 1e-5


ONE_SAMPLE = pytest.param(Shape(1, 3, 5, 3, 3), marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("shape", [Shape(2, 3, 5, 3, 2), ONE_SAMPLE], ids=str)
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_opcheck(name, path, shape):
    operator = OPERATORS[name]
    op = getattr(torch.ops.atm_triton, operator.op)
    with path.active():
        torch.library.opcheck(op, operator.registered(*make(operator, shape, torch.float32, path.device)))


COMPILATIONS = [
    (False, "inductor"),
    (None, "aot_eager"),  # whose first shape is compiled as a static one
    pytest.param(None, "inductor", marks=pytest.mark.exhaustive),
    pytest.param(False, "aot_eager", marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize("dynamic,backend", COMPILATIONS, ids=lambda value: {False: "static", None: "automatic"}.get(value, value))
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_compile(name, path, dynamic, backend):
    """Compiles whole, the same as eager; one compilation per shape if static, two for all shapes if not."""
    if path is INTERPRETER and backend == "inductor":
        pytest.skip("Inductor would compile the kernels for a GPU")
    operator = OPERATORS[name]
    compilations = 0

    def count(graph, inputs):
        nonlocal compilations
        compilations += 1
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(lambda *inputs: operator.function(*inputs) * 1.5, fullgraph=True, dynamic=dynamic, backend=count)
    sizes = ((2, 3, 4), (2, 3, 4), (3, 4, 5), (4, 2, 7))
    for b, h, w in sizes[:2] if dynamic is False else sizes:
        shape = Shape(b, h, w, 4, 2)
        inputs = make(operator, shape, torch.float32, path.device)
        with path.active():
            actual = gradients(compiled, inputs)
            expected = gradients(lambda *inputs: operator.function(*inputs) * 1.5, inputs)
        for a, e in zip(actual, expected, strict=True):
            assert error(a, e.detach().cpu().double()) < 1e-5
    assert compilations <= (1 if dynamic is False else 2)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_deterministic_runs_are_bitwise_equal(name, path):
    operator = OPERATORS[name]
    shape = Shape(2, 4, 33, 4, 2) if path is GPU else Shape(2, 2, 5, 4, 2)
    inputs = make(operator, shape, torch.float32, path.device)
    torch.use_deterministic_algorithms(True)
    with path.active():
        first = gradients(operator.function, inputs)
        for _ in range(20 if path is GPU else 2):
            for a, b in zip(first, gradients(operator.function, inputs), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", [PLAIN, on_gpu], ids=str)
def test_autocast(name, path):
    """Autocast computes in its dtype, eager and compiled alike, and gradients come back in the inputs' dtype."""
    operator = OPERATORS[name]
    inputs = make(operator, SMALL, torch.float32, path.device)
    with torch.autocast(path.device, torch.bfloat16):
        eager = operator.function(*inputs)
        compiled = torch.compile(operator.function, fullgraph=True, backend="aot_eager")(*inputs)
    assert eager.dtype == compiled.dtype == torch.bfloat16
    torch.testing.assert_close(eager, compiled)
    assert {g.dtype for g in torch.autograd.grad(eager.float().sum(), inputs)} == {torch.float32}


def test_every_operator_has_its_rows():
    names = {name.removeprefix("atm_triton::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("atm_triton::")}
    operators = {name for name in names if not name.endswith("_backward")}
    assert names == operators | {f"{name}_backward" for name in operators}
    assert operators == {operator.op for operator in OPERATORS.values()}
    assert operators <= set(atm_triton.__all__)


def test_forward_mode_is_refused():
    for operator in OPERATORS.values():
        inputs = tuple(t.detach() for t in make(operator, SMALL, torch.float32, "cpu"))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.func.jvp(lambda x, operator=operator, rest=inputs[1:]: operator.function(x, *rest), inputs[:1], inputs[:1])


@pytest.mark.parametrize("name", NAMES)
def test_flops(name):
    """FLOPs are as many as the definition's GEMMs, and those per value that are in none."""
    operator = OPERATORS[name]

    def count(function) -> int:
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            function(*make(operator, SMALL, torch.float32, "cpu")).sum().backward()
        return counter.get_total_flops()

    assert count(operator.function) == count(operator.definition) + sum(operator.elementwise) * math.prod(SMALL.of(operator.axes))
