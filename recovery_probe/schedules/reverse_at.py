"""The cycle, backwards from some epoch on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from recovery_probe.schedules import Schedule, check_epoch


@dataclass
class ReverseAt(Schedule):
    """The cycle for `after` epochs, then backwards to the end: neighbours stay neighbours, and
    those that came before come after."""

    name = "reverse_at"

    # epochs forwards, 1 or more
    after: Annotated[int, Ge(1)] = 3

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        check_epoch(self.after, epochs)
        there = np.arange(documents)
        return np.concatenate(
            [np.tile(there, self.after), np.tile(there[::-1], epochs - self.after)]
        )
