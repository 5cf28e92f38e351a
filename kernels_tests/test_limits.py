"""What a configuration needs of a GPU, told before and after it is compiled."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest

from atm_triton.limits import Limits, fits, spills


@pytest.mark.parametrize(
    "config,element_size,room",
    [
        (dict(BLOCK_N=128, BLOCK_C=128, num_warps=4), 2, True),  # 128 values a thread
        (dict(BLOCK_N=512, BLOCK_C=128, num_warps=4), 2, False),  # 512
        (dict(BLOCK_N=512, BLOCK_C=128, num_warps=16), 2, True),
        (dict(BLOCK_N=512, BLOCK_G=16, BLOCK_S=8, num_warps=4), 2, False),  # the same tile in three dimensions
        (dict(BLOCK_N=64, BLOCK_O=64, BLOCK_C=64, num_warps=4), 2, True),  # operands of 16 KiB, twice: in flight and in use
        (dict(BLOCK_N=64, BLOCK_O=64, BLOCK_C=64, num_warps=4, num_stages=8), 2, False),  # 112 KiB
        (dict(BLOCK_N=64, BLOCK_O=64, BLOCK_C=64, num_warps=4, num_stages=5), 4, False),  # 128 KiB
        (dict(BLOCK_N=64, BLOCK_O=64, BLOCK_G=8, BLOCK_S=8, num_warps=4, num_stages=8), 2, False),
        (dict(BLOCK_N=256, BLOCK_O=256, BLOCK_C=256, num_warps=4, num_stages=1), 1, False),  # 512 values of the result a thread
        (dict(FOLD=1), 2, True),
    ],
)
def test_room(config, element_size, room):
    assert fits(config, element_size, Limits(shared=100 * 1024, threads=32)) == room


class Compiled:
    def __init__(self, constants, num_warps, num_stages, **facts):
        self.src = SimpleNamespace(constants=constants)
        self.metadata = SimpleNamespace(num_warps=num_warps, num_stages=num_stages)
        vars(self).update(facts)


def test_spills_are_those_of_the_configuration():
    variants = {
        "a": Compiled({(2,): 64}, 4, 3, n_spills=0),
        "b": Compiled({(2,): 128}, 4, 3, n_spills=8),
        "c": Compiled({(2,): 128}, 8, 3),  # a Triton that does not tell
        "d": object(),  # not compiled yet
    }
    kernel = SimpleNamespace(arg_names=("x_ptr", "N", "BLOCK_N"), device_caches={0: (variants,)})
    assert spills(kernel, dict(BLOCK_N=64, num_warps=4)) == 0
    assert spills(kernel, dict(BLOCK_N=128, num_warps=4)) == spills(kernel, dict(BLOCK_N=128, num_warps=4, num_stages=3)) == 8
    assert spills(kernel, dict(BLOCK_N=128, num_warps=4, num_stages=2)) == spills(kernel, dict(BLOCK_N=128, num_warps=8)) == 0
    assert spills(None, dict(FOLD=1)) == 0


def test_triton_keeps_the_constants_that_spills_are_looked_up_by():
    from aot import compile_kernel

    kernel = import_module("atm_triton.axial_gather")._axial_gather_fwd_kernel
    arguments = {name: "*bf16" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
    tile = dict(BLOCK_N=256, BLOCK_G=4, BLOCK_S=2)
    constants = dict(G=4, S=2, OFFSET_STRIDE=8, ALONG_W=True, **tile)
    compiled = compile_kernel(kernel, arguments, constants, 90, dict(num_warps=4))
    compiled.n_spills = 5
    stand_in = SimpleNamespace(arg_names=kernel.arg_names, device_caches={0: ({"key": compiled},)})
    assert spills(stand_in, tile | dict(num_warps=4)) == 5 and spills(stand_in, tile | dict(BLOCK_N=512)) == 0
