"""Documents left out from some epoch on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from recovery_probe.errors import InputError
from recovery_probe.schedules import Schedule, check_epoch


@dataclass
class Omit(Schedule):
    """The cycle for `after` epochs, then without some of its documents, the others closing up: does
    the loss of one that never comes again still fall when its turn would be, between its
    neighbours? Nothing takes its place, which would be one more thing to tell apart: later epochs
    are shorter by those that are left out."""

    name = "omit"

    # epochs with all of them, 1 or more
    after: Annotated[int, Ge(1)] = 3
    # the documents that are left out
    documents: tuple[Annotated[int, Ge(0)], ...] = (0,)

    def per_epoch(self, documents: int, epochs: int) -> int:
        return documents - len(set(self.documents))

    def lengths(self, documents: int, epochs: int) -> tuple[int, ...]:
        return (documents,) * self.after

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        check_epoch(self.after, epochs)
        rest = np.setdiff1d(np.arange(documents), self.documents)
        named = sorted(set(self.documents))
        if not named or named[-1] >= documents or len(rest) < 2:
            raise InputError(
                f"schedule.documents = {list(self.documents)}: expected some of 0 to "
                f"{documents - 1}, and 2 that are not named"
            )
        before = np.tile(np.arange(documents), self.after)
        return np.concatenate([before, np.tile(rest, epochs - self.after)])
