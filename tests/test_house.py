"""The rules of the house that a machine can keep."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    path for folder in ("atm_triton", "models", "train", "bench", "kernels_tests", "tests") for path in (ROOT / folder).rglob("*.py")
]
# What each part may import of the others: data flows one way.
MAY_IMPORT = {"atm_triton": set(), "models/atmnet": {"atm_triton"}, "train": {"atm_triton", "atmnet", "atmnet_train"}}
PARTS = {"atm_triton", "atmnet", "atmnet_train", "bench", "kernels_tests", "tests"}


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


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_the_library_reads_no_environment_variable():
    for path in (ROOT / "atm_triton").rglob("*.py"):
        assert "environ" not in path.read_text() and "getenv" not in path.read_text(), path.name


def test_maps_are_resized_to_sizes_not_by_factors():
    """A factor's rounding would place samples elsewhere than the published networks do."""
    for path in (path for part in ("models", "train") for path in (ROOT / part).rglob("*.py")):
        assert "scale_factor" not in path.read_text(), path.name


# What stands in one place, as it would look in a second.
FACTS = {
    "replacing a file": (
        r"os\.(replace|rename)\(|NamedTemporaryFile|\.(replace|rename)\((file|path)\)",
        {"atm_triton/files.py", "atm_triton/tuning/tune.py"},  # which puts a broken table aside
    ),
    "reading weights": (r"torch\.load\(|safe_open\(|load_file\(", {"models/atmnet/weights/reader.py"}),
    "the device of choice": (r"cuda.* if torch\.cuda\.is_available\(\)", {"atm_triton/backend.py"}),
    "the name of a device": (r"platform\.processor\(", {"atm_triton/backend.py"}),
    "reading others' JSON": (r"json\.loads?\(", {"atm_triton/strict_json.py", "bench/gpu_report.py", "bench/gpu/training.py"}),
    "a model that is not there": (r"list_models\(", {"models/atmnet/variants.py"}),
    "channels of images": (r'"in_chans", 3', {"models/atmnet/images.py"}),
    "the tolerance rule": (r"\.finfo\(.*promote_types", {"atm_triton/testing.py"}),
}


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_stands_in_one_place(fact):
    pattern, home = FACTS[fact]
    programs = (path for path in SOURCES if "tests" not in path.relative_to(ROOT).parts[0])
    assert {str(path.relative_to(ROOT)) for path in programs if re.search(pattern, path.read_text())} == home


def test_no_module_shares_its_name_with_what_is_beside_it():
    """Attribute access would find one of the two, which depends on what was imported last."""
    for path in (path for part in ("atm_triton", "models/atmnet") for path in (ROOT / part).rglob("*.py")):
        tree = ast.parse(path.read_text()).body
        if path.name == "__init__.py":
            names = {alias.asname or alias.name for node in tree if isinstance(node, ast.ImportFrom) for alias in node.names}
            assert not names & {beside.stem for beside in path.parent.iterdir()}, path
        elif "models" in path.parts:
            assert path.stem not in {getattr(node, "name", None) for node in tree}, path


# The operator library from below; a module may import those before its own line, and its neighbours on it.
LAYERS = (
    ("_triton", "axes", "files", "flops", "reference", "strict_json"),
    ("algebra",),
    ("plain",),
    ("tuning.tables",),
    ("ops",),
    ("layers",),
    ("backend", "profile", "swapping", "tuning"),
    ("",),  # the public names
    ("testing",),
    ("selftest",),
    ("__main__",),
)


def layer(module: str) -> int:
    """Number of the line that names the module or, at most precisely, a package around it."""
    around = {part: number for number, parts in enumerate(LAYERS) for part in parts if f"{module}.".startswith(f"{part}.") or not part}
    return around[max(around, key=len)]


def test_the_library_imports_from_below():
    root = ROOT / "atm_triton"
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip("."): path for path in root.rglob("*.py")
    }
    for module, path in modules.items():
        package = path.relative_to(root).parent.parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):  # inside the library, by relative imports alone, which are looked at here
                assert not any(name.name.startswith("atm_triton") for name in node.names), path
            if not isinstance(node, ast.ImportFrom):
                continue
            assert node.level or not node.module.startswith("atm_triton"), path
            if not node.level:
                continue
            base = [*package[: len(package) - node.level + 1], *filter(None, (node.module or "").split("."))]
            for name in node.names:
                found = ".".join([*base, name.name])
                found = found if found in modules else ".".join(base)
                assert layer(found) <= layer(module), f"{path.relative_to(ROOT)} imports {found} from above"
