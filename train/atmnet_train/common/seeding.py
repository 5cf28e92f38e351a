"""Random numbers that depend on where the training is, not on how it got there.

Every draw follows a seed made of `--seed` and a place: (epoch, position) for the augmentation of a sample, (update, micro-batch,
process) for mixup and stochastic depth. So a resumed run repeats exactly what the interrupted one would have done with no generator
state in the checkpoint, and the samples of a global batch are the same for any number of processes and workers.
"""

import random

import numpy as np
import torch

# The first number of a place says what the numbers are for, so that two uses never share a stream.
ORDER, SAMPLE, STEP, WORKERS = range(4)


def derive_seed(seed: int, *place: int) -> int:
    """A well mixed 32-bit seed for a place."""
    return int(np.random.SeedSequence(seed, spawn_key=place).generate_state(1)[0])


def seed_everything(seed: int, *place: int) -> None:
    value = derive_seed(seed, *place)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def seed_sample(seed: int, *place: int) -> None:
    """Seeds the loading of one sample: it happens on the CPU, often, and must not touch the devices' generators."""
    value = derive_seed(seed, *place)
    random.seed(value)
    np.random.seed(value)
    torch.default_generator.manual_seed(value)
