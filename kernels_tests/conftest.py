"""Fixtures of all kernel tests: Triton without a GPU, and hypothesis settings fit for an interpreter."""

from __future__ import annotations

import pytest
import torch
import triton
from hypothesis import HealthCheck, settings

settings.register_profile("kernels", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("kernels")
torch.set_num_threads(1)  # there is a process of tests for every core: more threads would only wait for each other, and busily


class NoDriver:
    """Lets torch analyse which arguments a kernel writes on a machine without a GPU."""

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0


if not torch.cuda.is_available():
    triton.runtime.driver.set_active(NoDriver())


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch.use_deterministic_algorithms(False)
