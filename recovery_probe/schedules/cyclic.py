"""The same order every epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recovery_probe.schedules import Schedule


@dataclass
class Cyclic(Schedule):
    """Documents 0 to T - 1 in turn, every epoch (paper, section 3)."""

    name = "cyclic"

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        return np.tile(np.arange(documents), epochs)
