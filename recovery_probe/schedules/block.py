"""The cycle, shuffled within blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from recovery_probe.errors import InputError
from recovery_probe.schedules import Schedule


@dataclass
class Block(Schedule):
    """The cycle, in which every `size` documents in a row are shuffled among themselves, anew every
    epoch: waits are of T ± (size - 1) episodes, and `size` is the dose, from the cycle at 1 to a
    free shuffle at T."""

    name = "block"

    # documents in a block; the last block may be shorter
    size: Annotated[int, Ge(1)] = 4

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        if self.size > documents:
            raise InputError(
                f"schedule.size = {self.size}: a block of more than the {documents} documents"
            )
        order = np.tile(np.arange(documents), (epochs, 1))  # (epoch, place)
        for epoch in order:
            for start in range(0, documents, self.size):
                rng.shuffle(epoch[start : start + self.size])
        return order.ravel()
