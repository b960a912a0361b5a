"""A new order every epoch: the control."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recovery_probe.schedules import Schedule


@dataclass
class Shuffled(Schedule):
    """A random order of the documents, drawn anew for every epoch, the first included (paper,
    appendix A)."""

    name = "shuffled"

    # document 0 stays first in every epoch, as in the paper: a cyclic document inside the control,
    # which the cycle's own tests then find there
    keep_first: bool = False

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        first = 1 if self.keep_first else 0
        each = [
            [*range(first), *(first + rng.permutation(documents - first))] for _ in range(epochs)
        ]
        return np.array(each).ravel()
