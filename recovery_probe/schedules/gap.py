"""Foreign documents between two epochs of the cycle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from recovery_probe.errors import InputError
from recovery_probe.schedules import Schedule, check_epoch


@dataclass
class Gap(Schedule):
    """The cycle for `after` epochs, then `size` episodes on documents that are in no cycle, then
    the cycle again: a clock goes on through the gap, a cue waits. The foreign ones are the last of
    documents.count, so the cycle is of count - size documents; they lengthen the epoch that they
    follow."""

    name = "gap"

    # epochs before the gap, 1 or more
    after: Annotated[int, Ge(1)] = 3
    # foreign episodes, 1 or more
    size: Annotated[int, Ge(1)] = 5

    def per_epoch(self, documents: int, epochs: int) -> int:
        return documents - self.size

    def lengths(self, documents: int, epochs: int) -> tuple[int, ...]:
        cycle = documents - self.size
        return (*[cycle] * (self.after - 1), cycle + self.size)

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        check_epoch(self.after, epochs)
        if self.size > documents - 2:
            raise InputError(
                f"schedule.size = {self.size}: leaves less than 2 of the {documents} documents for "
                "the cycle: raise documents.count"
            )
        cycle, foreign = np.split(np.arange(documents), [documents - self.size])
        before, rest = np.tile(cycle, self.after), np.tile(cycle, epochs - self.after)
        return np.concatenate([before, foreign, rest])
