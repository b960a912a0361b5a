"""A part of the order drawn anew every epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from recovery_probe.errors import InputError
from recovery_probe.schedules import Schedule


@dataclass
class Partial(Schedule):
    """Documents `first` to `last` in a new order every epoch, in the places that they have; the
    others keep theirs (paper, appendix: 2 to N of 25, so that document 0 has strangers before it).
    """

    name = "partial"

    # the first document that is shuffled
    first: Annotated[int, Ge(0)] = 1
    # the last one; -1 for the last of all
    last: Annotated[int, Ge(-1)] = -1

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        last = documents - 1 if self.last == -1 else self.last
        if not self.first <= last < documents:
            raise InputError(
                f"schedule.first = {self.first} and schedule.last = {self.last}: expected first to "
                f"last of the documents 0 to {documents - 1}"
            )
        order = np.tile(np.arange(documents), (epochs, 1))  # (epoch, place)
        for epoch in order:
            rng.shuffle(epoch[self.first : last + 1])
        return order.ravel()
