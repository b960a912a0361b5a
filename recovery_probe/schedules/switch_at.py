"""Another cycle from some epoch on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from recovery_probe.schedules import Schedule, check_epoch


@dataclass
class SwitchAt(Schedule):
    """The cycle for `after` epochs, then another one, of a random order, to the end: does a
    document come back at its old time or before its new turn?"""

    name = "switch_at"

    # epochs of the first order, 1 or more
    after: Annotated[int, Ge(1)] = 3

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        check_epoch(self.after, epochs)
        other = rng.permutation(documents)
        return np.concatenate(
            [np.tile(np.arange(documents), self.after), np.tile(other, epochs - self.after)]
        )
