"""Random streams: one for each purpose, decided by the seed of a run."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np


def generator(seed: int | Sequence[int], purpose: str) -> np.random.Generator:
    """The random numbers of one purpose: independent of every other purpose's."""
    seeds = [seed] if isinstance(seed, int) else seed
    return np.random.default_rng([*seeds, zlib.crc32(purpose.encode())])


def torch_seed(seed: int, purpose: str) -> int:
    """A seed for a torch generator, made from the same stream."""
    return int(generator(seed, purpose).integers(2**63))
