"""Launch configurations: user cache, then the shipped table, then the formula; never a guard on the image size."""

from __future__ import annotations

import json

import pytest
import torch

from atm_triton import launch


class OnGpu:
    """The little of a CUDA tensor that a lookup sees."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.dtype, self.device = torch.Size(shape), torch.bfloat16, torch.device("cuda", 0)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Empty folders for the shipped and the user's tables, on a GPU that has a name."""
    monkeypatch.setattr(launch, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(launch, "USER_CACHE", tmp_path / "user")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (SXM)")
    launch.table.cache_clear()

    def write(folder, content):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "nvidia-h200-sxm.json").write_text(content if isinstance(content, str) else json.dumps(content))
        launch.table.cache_clear()

    yield write
    launch.table.cache_clear()


KEY = "axial_gather_fwd/56x56/C64/G32/bfloat16"
FORMULA = {"BLOCK_N": 1}


def look_up(x=None):
    return launch.config("axial_gather_fwd", x or OnGpu(8, 56, 56, 64), 32, FORMULA)


def test_user_cache_then_shipped_table_then_formula(tables):
    assert look_up() == FORMULA
    tables("shipped", {"configs": {KEY: {"BLOCK_N": 2}}})
    assert look_up() == {"BLOCK_N": 2}
    tables("user", {"configs": {KEY: {"BLOCK_N": 3}}})
    assert look_up() == {"BLOCK_N": 3}
    assert look_up(OnGpu(8, 57, 56, 64)) == FORMULA


def test_without_a_gpu_the_formula():
    assert launch.config("axial_gather_fwd", torch.zeros(1, 56, 56, 64, device="meta"), 32, FORMULA) == FORMULA


@pytest.mark.parametrize("content", ["not json", "{}", "[]"])
def test_a_broken_table_is_named(tables, content):
    tables("user", content)
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
    assert launch.key("axial_gather_fwd", x, 32) == KEY
    assert not env.guards
