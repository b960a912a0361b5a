"""The cycle backwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recovery_probe.schedules import Schedule


@dataclass
class Reversed(Schedule):
    """Documents T - 1 to 0 in turn, every epoch: the same neighbours, the other way round."""

    name = "reversed"

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        return np.tile(np.arange(documents)[::-1], epochs)
