"""What a configuration needs of a GPU, told before it is compiled."""

from __future__ import annotations

import pytest

from atm_triton.limits import Limits, fits


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
