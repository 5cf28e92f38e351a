"""Needs of kernels, told before they run: compiled for a GPU that is not there, whose driver refuses to launch."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
import triton
from aot import registers_and_spills, target
from interpreter import interpreted

from atm_triton.ops import axial_gather as gather
from atm_triton.ops import offset_fc as fc
from atm_triton.tuning.spills import spills

NUMBERS = itertools.count(7)  # of devices: Triton remembers what each is


class Driver:
    """An H100 with as much shared memory as is asked for."""

    def __init__(self, shared: int) -> None:
        self.shared, self.number, self.utils = shared, next(NUMBERS), self

    def get_current_target(self):
        return target(90)

    def get_current_device(self):
        return self.number

    def get_current_stream(self, device):
        return 0

    def get_device_properties(self, device):
        return {"max_shared_mem": self.shared}

    def launcher_cls(self, source, metadata):
        return lambda *args: pytest.fail("it runs")

    def load_binary(self, name, binary, shared, device):
        registers, size = registers_and_spills(binary)
        return "module", "function", registers, size // 4, 1024


@pytest.fixture
def gpu():
    active = triton.runtime.driver.active

    def use(shared: int = 227 * 1024) -> None:
        triton.runtime.driver.set_active(Driver(shared))

    yield use
    triton.runtime.driver.set_active(active)


def multiplies(**config):
    x, v, single = torch.zeros(128, 128, dtype=torch.bfloat16), torch.zeros(128, dtype=torch.bfloat16), torch.zeros(128)
    tiles = dict(BLOCK_N=64, BLOCK_O=64, BLOCK_C=64, num_warps=4) | config
    fc._offset_fc_fwd_kernel[(1, 1)](x, v, v, x, v, x, single, single, 128, 128, 128, 1e-5, **tiles)


LARGE = dict(BLOCK_N=128, BLOCK_O=256, num_stages=3)


def test_a_tile_too_large_for_the_registers_spills(gpu):
    gpu()
    assert spills(multiplies) == 0
    assert spills(lambda: multiplies(**LARGE)) > 4
    assert spills(lambda: (multiplies(**LARGE), multiplies())) > 4  # also when it is compiled already, and of all the most
    assert spills(lambda: multiplies(**LARGE, num_warps=8)) == 0


def test_operands_too_large_for_the_shared_memory_are_refused(gpu):
    gpu(shared=99 * 1024)
    assert spills(multiplies) == 0
    for _ in range(2):
        with pytest.raises(triton.OutOfResources, match="shared memory"):
            spills(lambda: multiplies(**LARGE))


def test_launches_of_other_threads_and_later_ones_run():
    x, offset, ys = torch.ones(4, 64), torch.zeros(4, 32), torch.zeros(3, 4, 64)

    def launch(number):
        tiles = dict(BLOCK_N=4, BLOCK_G=32, BLOCK_S=2)
        gather._axial_gather_fwd_kernel[(1, 1)](x, offset, ys[number], 4, 2, 2, 32, 2, 32, True, **tiles)

    other = threading.Thread(target=launch, args=(1,))
    with interpreted():
        assert spills(lambda: (launch(0), other.start(), other.join())) == 0
        launch(2)
    assert ys.sum((1, 2)).tolist() == [0, 256, 256]
