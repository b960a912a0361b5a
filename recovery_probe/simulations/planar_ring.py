"""A ring of tasks in the plane, whose losses have a closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recovery_probe.simulations import Drawn, Simulation
from recovery_probe.simulations.least_squares import LeastSquares
from recovery_probe.stats import Floats


@dataclass
class PlanarRing(Simulation):
    """Tasks u_k·v = 0 in the plane, each direction turned by π/T from the one before, solved
    exactly in turn.

    With neighbours that are alike by construction, all is known: after t episodes of the cyclic
    order document k has the loss cos(π/T)^2t · sin²(π(t - 1 - k)/T), which at T = 25 is a recovery
    score of .98696 in every epoch. Training starts where the last document of the cycle is solved.
    Held-out documents stand half-way between two. The first step of an episode solves its document,
    so that more steps change nothing. The plane is there twice, v / √2 in either half of the
    weights, so that every module is a ring; and a document is its equation twice, since a run's
    documents have at least two positions. In the control the weights are at 0 very soon.
    """

    name = "planar_ring"
    lr: ClassVar[float] = 0.5

    def draw(self, seed: int | None = None) -> dict[str, Drawn]:
        seed = self.seed if seed is None else seed
        T = self.documents
        place = np.concatenate([np.arange(T), np.arange(self.held_out) + 0.5])
        # Both of a document's equations are (u, u)·w = √2 u·v = 0: half of its square is (u·v)²,
        # and a step of lr 1/2 takes v to where it is 0.
        X = np.tile(_direction(place + 1, T)[:, None], (1, 2, 2))
        start = np.tile(_direction(np.array(T / 2), T), 2) / np.sqrt(2)
        problem = LeastSquares(X, np.zeros((len(place), 2)), start, T, self.lr, self.steps)
        return {kind: problem.descend(order) for kind, order in self.orders(seed).items()}


def _direction(place: Floats, T: int) -> Floats:
    """(…, 2)"""
    angle = np.pi * place / T
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)
