"""Forgetting by age while everything gets better, steadily."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from recovery_probe.simulations import Order, Recorded
from recovery_probe.simulations.by_age import ByAge, drifting
from recovery_probe.stats import Floats


@dataclass
class Drift(ByAge):
    """Forgetting by age, and a steady fall of all losses alike, those of held-out documents too:
    no document's turn has anything to do with it. The weights move along a straight line, one unit
    an episode, with steps at random added."""

    name = "drift"

    # how far all losses fall in an epoch, nats, of the 1 that is forgotten
    fall: Annotated[float, Ge(0)] = 0.2
    # size of the random part of an episode's update, beside the straight part of 1
    rough: Annotated[float, Ge(0)] = 1.0

    def losses(self, order: Order, kind: str, rng: np.random.Generator) -> Floats:
        left = self.epochs - np.arange(len(order) + 1) / self.documents  # epochs
        return super().losses(order, kind, rng) + self.fall * left[:, None]

    def recorded(
        self, order: Order, shared: np.random.Generator, own: np.random.Generator
    ) -> dict[str, Recorded]:
        return drifting(np.ones(len(order)), self.rough, shared, own)
