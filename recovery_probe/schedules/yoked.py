"""Some documents in a cycle, among others that are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from recovery_probe.errors import InputError
from recovery_probe.schedules import Schedule, fresh_ones


@dataclass
class Yoked(Schedule):
    """Documents 0 to `kept` - 1 come back after exactly an epoch, evenly spaced; between them
    others in a new order every epoch, or ones that never come again. So the wait is a cycle's and
    the neighbours are strangers; kept / slots is the dose of the cycle."""

    name = "yoked"

    # documents that keep their slots
    kept: Annotated[int, Ge(1)] = 5
    # 0: the others are shuffled. Otherwise the episodes of an epoch, those of the others with
    # documents that come once: documents.count is then kept + (slots - kept) · epochs
    slots: Annotated[int, Ge(0)] = 0

    def per_epoch(self, documents: int, epochs: int) -> int:
        return self.slots or documents

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        slots = self.per_epoch(documents, epochs)
        if self.kept > slots:
            raise InputError(f"schedule.kept = {self.kept}: more than the {slots} of an epoch")
        places = np.arange(self.kept) * slots // self.kept
        others = np.setdiff1d(np.arange(slots), places)
        order = np.empty((epochs, slots), dtype=np.int64)
        order[:, places] = np.arange(self.kept)
        if self.slots:
            order[:, others] = fresh_ones("slots - kept", self.kept, len(others), documents, epochs)
        else:
            order[:, others] = [self.kept + rng.permutation(len(others)) for _ in range(epochs)]
        return order.ravel()
