"""Forgetting by age while everything gets better, fast at first and then slower and slower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from recovery_probe.simulations import Order, Recorded
from recovery_probe.simulations.by_age import ByAge, drifting
from recovery_probe.stats import Floats, Ints


@dataclass
class DeceleratingDrift(ByAge):
    """Forgetting by age, and weights that move along a straight line, one unit in the first
    episode and ever less, with steps at random added; all losses fall with them, those of held-out
    documents too. There is no cycle: but a path that slows down is curved in the same way in every
    epoch."""

    name = "decelerating_drift"

    # how far all losses would fall if it went on for ever, nats, of the 1 that is forgotten
    fall: Annotated[float, Ge(0)] = 1.0
    # epochs in which the straight part of an update shrinks to 1/e
    slowing: Annotated[float, Gt(0)] = 1.0
    # size of the random part of an episode's update, beside the straight part of 1 at the start
    rough: Annotated[float, Ge(0)] = 0.3

    def losses(self, order: Order, kind: str, rng: np.random.Generator) -> Floats:
        left = self._left(np.arange(len(order) + 1))
        return super().losses(order, kind, rng) + self.fall * left[:, None]

    def recorded(
        self, order: Order, shared: np.random.Generator, own: np.random.Generator
    ) -> dict[str, Recorded]:
        return drifting(self._left(np.arange(len(order))), self.rough, shared, own)

    def _left(self, episodes: Ints) -> Floats:
        """The share of the way that is left."""
        return np.exp(-episodes / (self.slowing * self.documents))
