"""Launch configurations: user cache, then the shipped table, then the default; never a guard on the image size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import atm_triton
from atm_triton.testing import OPERATORS
from atm_triton.tuning import tables


class OnGpu:
    """The little of a CUDA tensor that a lookup sees."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.dtype, self.device = torch.Size(shape), torch.bfloat16, torch.device("cuda", 0)


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Empty folders for the shipped and the user's tables, on a GPU that has a name."""
    monkeypatch.setattr(tables, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(tables, "USER_CACHE", tmp_path / "user")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (SXM)")
    tables.forget_tables()

    def write(folder, content):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "nvidia-h200-sxm.json").write_text(content if isinstance(content, str) else json.dumps(content))
        tables.forget_tables()

    yield write
    tables.forget_tables()


KEY = "axial_gather_fwd/56x56/C64/G32/bfloat16"
DEFAULT = {"BLOCK_N": 1, "num_warps": 4}


def candidates(kernel, x, groups):
    yield DEFAULT
    assert tables.key(kernel, x, groups) in tables.table(x.device), "without a table, a launch looks at the first candidate only"
    yield from (DEFAULT | {"BLOCK_N": size} for size in (2, 4))
    yield DEFAULT | {"BLOCK_N": 3, "num_stages": 2}


def look_up(x=None):
    return tables.config("axial_gather_fwd", OnGpu(8, 56, 56, 64) if x is None else x, 32, candidates)


def test_user_cache_then_shipped_table_then_default(put):
    assert look_up() == DEFAULT
    put("shipped", {"configs": {KEY: DEFAULT | {"BLOCK_N": 2}}})
    assert look_up() == DEFAULT | {"BLOCK_N": 2}
    put("user", {"configs": {}, "older": {KEY: DEFAULT | {"BLOCK_N": 4}}})
    assert look_up() == DEFAULT | {"BLOCK_N": 4}
    put("user", {"configs": {KEY: DEFAULT | {"BLOCK_N": 3, "num_stages": 2}}, "older": {KEY: DEFAULT | {"BLOCK_N": 4}}})
    assert look_up() == DEFAULT | {"BLOCK_N": 3, "num_stages": 2}
    assert look_up(OnGpu(8, 57, 56, 64)) == DEFAULT


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_a_gpu_the_default(put, device):
    put("user", {"configs": {KEY: DEFAULT | {"BLOCK_N": 2}}})
    assert look_up(torch.zeros(1, 56, 56, 64, device=device, dtype=torch.bfloat16)) == DEFAULT


@pytest.mark.parametrize("entry", [{"BLOCK_N": 2}, {"BLOCK_M": 2, "num_warps": 4}, DEFAULT | {"BLOCK_N": 5}, DEFAULT | {"BLOCK_C": 64}, {}])
@pytest.mark.parametrize("folder", ["user", "shipped"])
def test_what_is_no_candidate_is_passed_over_and_told_once(put, folder, entry):
    """Tables may come from another version, or from whoever can write the file: a wrong block would leave results unwritten."""
    put(folder, {"configs": {KEY: entry}})
    with pytest.warns(UserWarning, match=rf"{folder}.nvidia-h200-sxm\.json: {KEY} is .*no candidate.*tune again") as told:
        assert look_up() == look_up() == DEFAULT
    assert len(told) == 1


@pytest.mark.parametrize("file", sorted(tables.SHIPPED.glob("*.json")), ids=lambda file: file.stem)
def test_what_is_shipped_are_candidates(file):
    modules = {kernel: import_module(f"atm_triton.ops.{op}") for op in {o.op for o in OPERATORS.values()} for kernel in kernels_of(op)}
    content = tables.read_table(file)
    for name, config in (content["configs"] | content.get("older", {})).items():
        kernel, *sizes, dtype = re.fullmatch(r"(\w+)/(\d+)x(\d+)/C(\d+)/G(\d+)/(\w+)", name).groups()
        H, W, C, G = map(int, sizes)
        x = torch.empty(1, H, W, C, dtype=getattr(torch, dtype), device="meta")
        assert config in modules[kernel].candidates(kernel, x, G), name


def kernels_of(op: str) -> set[str]:
    return {kernel for kernels in import_module(f"atm_triton.ops.{op}").KERNELS.values() for kernel in kernels}


def test_a_pipe_in_place_of_a_table_is_not_waited_for(put, tmp_path):
    put("user", {"configs": {}})
    file = tmp_path / "user" / "nvidia-h200-sxm.json"
    file.unlink()
    os.mkfifo(file)
    tables.stamp()
    tables._tables.clear()
    with pytest.warns(UserWarning, match="cannot read launch configurations from .*no regular file"):
        assert look_up() == DEFAULT


def test_without_a_home_a_folder_of_ones_own_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(tables.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tables._user_cache()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert tables._user_cache() == folder
    folder.chmod(0o777)  # as somebody else could have made it
    assert tables._user_cache() == Path(os.devnull)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert tables._user_cache() == Path(os.devnull)


def test_small_channel_counts_make_no_candidate_twice():
    assert list(tables.distinct(lambda kernel, x, groups: iter(({"A": 1}, {"A": 2}, {"A": 1})))("", None, 1)) == [{"A": 1}, {"A": 2}]


@pytest.mark.parametrize(
    "content", ["not json", "{}", "[]", '{"configs": {}, "configs": {}}', {"configs": {KEY: {"BLOCK_N": "2"}}}, {"configs": {KEY: 2}}]
)
def test_a_broken_table_is_named(put, content):
    put("user", content)
    with pytest.raises(ValueError, match=r"user.nvidia-h200-sxm\.json is not a table"):
        look_up()


def test_symbolic_sizes_use_the_first_shape_and_no_guard():
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

    env = ShapeEnv()
    symbol = env.create_symbol(56, ConstantSource("h"), dynamic_dim=DimDynamic.DYNAMIC)
    size = env.create_symintnode(symbol, hint=56)
    x = OnGpu(1, 1, 1, 64)
    x.shape = (8, size, size, 64)
    assert tables.key("axial_gather_fwd", x, 32) == KEY
    assert not env.guards


def write(file, configs):
    tables.write_table(file, "NVIDIA H200", configs)
    return json.loads(file.read_text())


def test_tables_are_merged_and_replaced_as_a_whole(tmp_path, monkeypatch):
    file = tmp_path / "not yet there" / "gpu.json"
    write(file, {"a": {"X": 1}, "b": {"X": 1}})
    content = write(file, {"b": {"X": 2}, "c": {"X": 2}})
    assert content["configs"] == {"a": {"X": 1}, "b": {"X": 2}, "c": {"X": 2}}
    assert (content["gpu"], content["triton"], content["torch"]) == ("NVIDIA H200", tables.triton.__version__, torch.__version__)
    before = file.read_text()

    def full(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(tables.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write(file, {"d": {"X": 3}})
    assert file.read_text() == before and list(file.parent.iterdir()) == [file]


def test_what_another_triton_measured_is_kept_apart_until_it_is_measured_again(tmp_path, monkeypatch):
    file = tmp_path / "gpu.json"
    with monkeypatch.context() as patch:
        patch.setattr(tables.triton, "__version__", "3.0")
        assert write(file, {"a": {"X": 1}, "b": {"X": 1}})["triton"] == "3.0"
    content = write(file, {"b": {"X": 2}})
    assert content["configs"] == {"b": {"X": 2}} and content["older"] == {"a": {"X": 1}}
    content = write(file, {"a": {"X": 2}})
    assert content["configs"] == {"a": {"X": 2}, "b": {"X": 2}} and "older" not in content


def test_a_table_that_cannot_be_read_is_told_once(put, monkeypatch):
    put("user", {"configs": {KEY: DEFAULT | {"BLOCK_N": 2}}})
    put("shipped", {"configs": {KEY: DEFAULT | {"BLOCK_N": 4}}})
    read = tables._content

    def locked(file):
        if file.parent.name == "user":
            raise PermissionError(13, "Permission denied", str(file))
        return read(file)

    monkeypatch.setattr(tables, "_content", locked)
    with pytest.warns(UserWarning, match=r"cannot read launch configurations from .*user.nvidia.*Permission denied.* without them") as told:
        assert look_up() == look_up() == DEFAULT | {"BLOCK_N": 4}
    assert len(told) == 1


COMPILES = """
import sys, torch, atm_triton
from torch._dynamo.utils import counters

torch._inductor.config.cpp_cache_precompile_headers = False  # they take longer than the one compilation that would use them
x, offset = torch.randn(1, 3, 4, 8), torch.randn(1, 3, 4, 4)
for table in sys.argv[1:]:
    if table != "from disk":
        atm_triton.tuning.tables.set_table(torch.device("cuda", 0), {table: {"BLOCK_N": 1}})
    torch._dynamo.reset()
    counters.clear()
    torch.compile(atm_triton.axial_gather, fullgraph=True)(x, offset, "w")
    print(*(counters["aot_autograd"][f"autograd_cache_{what}"] for what in ("hit", "miss")))
"""


@pytest.mark.exhaustive  # half a minute of compiling and starting processes
def test_compiled_code_on_disk_belongs_to_its_tables(tmp_path):
    """An operator is only a name to torch.compile: with another configuration it must not find what it has compiled before."""
    home, cache = tmp_path / "home", tmp_path / "inductor"
    environment = os.environ | dict(HOME=str(home), TORCHINDUCTOR_CACHE_DIR=str(cache), OMP_NUM_THREADS="1")
    environment.pop("TORCHINDUCTOR_FORCE_DISABLE_CACHES", None)

    def compiles(*tables):
        line = [sys.executable, "-c", COMPILES, *tables]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout.splitlines()

    found, anew = "1 0", "0 1"
    assert compiles("from disk", "from disk") == [anew, found]
    write(home / ".cache/atm_triton/nvidia-h200.json", {KEY: {"BLOCK_N": 2}})
    assert compiles("from disk", "given", "another") == [anew, anew, anew]
    assert compiles("from disk", "given", "another") == [found, found, found]


def test_the_key_covers_the_files_of_every_folder(tmp_path, monkeypatch):
    assert Path(atm_triton.__file__).parent == tables.PACKAGE
    file = tmp_path / "ops" / "an_operator" / "kernels.py"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(tables, "PACKAGE", tmp_path)
    keys = set()
    for text in ("one", "another"):
        file.write_text(text)
        with torch.compiler.config.patch(cache_key_tag=""):
            tables.stamp()
            keys.add(torch.compiler.config.cache_key_tag)
    assert len(keys) == 2


def test_the_users_own_part_of_the_key_stays():
    config = torch.compiler.config
    with config.patch(cache_key_tag="theirs " + config.cache_key_tag):
        tables.set_table(torch.device("cuda", 7), {"a": {"X": 1}})
        first = config.cache_key_tag
        tables.forget_tables()
        second = config.cache_key_tag
    assert first.startswith("theirs ") and second.startswith("theirs ") and first != second and len(first) == len(second)
