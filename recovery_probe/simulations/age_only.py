"""Forgetting by age, with noise and nothing else; or with a recovery that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le, Lt

from recovery_probe.simulations import Order
from recovery_probe.simulations.by_age import ByAge
from recovery_probe.stats import Floats, Ints

ONSET = 0.75  # of a wait of T episodes: a planted recovery starts there


@dataclass
class AgeOnly(ByAge):
    """A loss that depends on a document's age alone: floor + 1 - exp(-age / tau), with noise.

    With `planted` a share of what is forgotten comes back before the document's turn, in the cyclic
    run alone: nothing up to three quarters of the wait, then in a straight line, all of the share
    right before the next episode. From any peak up to there the matched fall is then
    planted · (1 - exp(-(T - 1) / tau)) nats, all of it gain on arrival and none excess.
    """

    name = "age_only"

    # share of the forgotten loss that comes back by arrival, in the cyclic run alone
    planted: Annotated[float, Ge(0), Lt(1)] = 0.0
    # of the noise: 0 independent from row to row; below 1 its autocorrelation; 1 a random walk that
    # starts anew at every episode on the document, with steps of that size
    memory: Annotated[float, Ge(0), Le(1)] = 0.0

    def losses(self, order: Order, kind: str, rng: np.random.Generator) -> Floats:
        losses = super().losses(order, kind, rng)
        if kind == "cyclic":
            T = self.documents
            arrived = np.clip((self.ages(order) / (T - 1) - ONSET) / (1 - ONSET), 0, 1)
            losses -= self.planted * self.forgotten(np.array(T - 1)) * arrived
        return losses

    def noises(self, age: Ints, rng: np.random.Generator) -> Floats:
        noise, walks = super().noises(age, rng), self.memory == 1
        fresh = 1.0 if walks else np.sqrt(1 - self.memory**2)
        for row in range(1, len(noise)):
            if row > 1:
                noise[row] = self.memory * noise[row - 1] + fresh * noise[row]
            noise[row, (age[row] == 0) & walks] = 0
        return noise
