"""Random numbers that depend on the seed and the place in the run, on nothing that ran before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed torch (every device), numpy and random from non-negative integers, such as (seed, step, rank).

    >>> seed_all(0, 7)
    >>> first = torch.rand(2)
    >>> seed_all(0, 7)
    >>> torch.equal(first, torch.rand(2))
    True
    """
    words = np.random.SeedSequence(key).generate_state(4)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(int(words[2]))
    random.seed(int(words[3]))


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Give the caller's random states back afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
