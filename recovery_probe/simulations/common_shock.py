"""Forgetting by age, with shocks that all forgotten documents feel together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Lt

from recovery_probe.simulations import Order
from recovery_probe.simulations.by_age import ByAge
from recovery_probe.stats import Floats


@dataclass
class CommonShock(ByAge):
    """Forgetting by age, times one plus a shock that is common to all documents and lasts for a
    while (an AR(1)): documents of one run are not independent, whatever an interval over them
    supposes."""

    name = "common_shock"

    # standard deviation of the shock, nats, of the 1 that is forgotten
    shock: Annotated[float, Ge(0)] = 0.1
    # its autocorrelation from one episode to the next
    memory: Annotated[float, Ge(0), Lt(1)] = 0.9

    def losses(self, order: Order, kind: str, rng: np.random.Generator) -> Floats:
        losses = super().losses(order, kind, rng)
        shock = self.shock * rng.normal(size=len(losses))
        for row in range(1, len(shock)):
            shock[row] = self.memory * shock[row - 1] + np.sqrt(1 - self.memory**2) * shock[row]
        age = self.ages(order)
        return losses + np.where(age < 0, 0, self.forgotten(age)) * shock[:, None]
