"""A cycle, and after it documents that never come again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from recovery_probe.schedules import Schedule, fresh_ones


@dataclass
class Fresh(Schedule):
    """`fixed` documents in turn, then `new` ones that come once in the whole run, every epoch
    (paper, appendix: 20 fixed, 20 to 100 new). documents.count is of all: fixed + new · epochs. Its
    control has the fixed ones in a new order every epoch: --control fresh:shuffled=true."""

    name = "fresh"

    # documents that come every epoch
    fixed: Annotated[int, Ge(1)] = 20
    # documents that come once, in each epoch
    new: Annotated[int, Ge(1)] = 20
    # the fixed ones and the new ones of an epoch in a random order together
    shuffled: bool = False

    def per_epoch(self, documents: int, epochs: int) -> int:
        return self.fixed + self.new

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        new = fresh_ones("new", self.fixed, self.new, documents, epochs)
        fixed = np.tile(np.arange(self.fixed), (epochs, 1))
        order = np.concatenate([fixed, new], axis=1)  # (epoch, place)
        return (rng.permuted(order, axis=1) if self.shuffled else order).ravel()
