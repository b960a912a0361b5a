"""Documents of linear equations that share a component: recovery without features or depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le

from recovery_probe.errors import InputError
from recovery_probe.seeds import generator
from recovery_probe.simulations import Drawn, Simulation
from recovery_probe.simulations.least_squares import LeastSquares

MOST = 4096  # equations: a record's sketches are no larger, and the products take gigabytes


@dataclass
class LinearDocuments(Simulation):
    """Documents X_k = √(1-s) R_k + √s C of linear equations in one weight vector, fitted in turn.

    R_k is a document's own and C is common to all: any two documents are alike by the share s,
    wherever they stand in the cycle, and nothing that training does can change that. Entries are
    N(0, q/d) for q equations in d weights, targets N(0, 1), independent of all else, weights start
    at 0: there is no feature that could be learned. Loss: mean over a document's equations of half
    the squared error.

    At s = .5, T = 20 and M = 10 the averaged curve recovers .26/.41/.52/.60/.66 by epoch (mean of
    80 seeds, sd .06); at s = 0 nothing, at M = 1 or a tenth of the lr next to nothing.
    """

    name = "linear_documents"

    # s, what any two documents have in common: 0 nothing, 1 all
    share: Annotated[float, Ge(0), Le(1)] = 0.5
    # q, linear equations of a document, which stand for its tokens; at least 2
    equations: Annotated[int, Ge(2)] = 20
    # weights for each document trained on, d/T
    weights: Annotated[int, Ge(1)] = 50
    # learning rate
    lr: Annotated[float, Gt(0)] = 0.3

    @property
    def positions(self) -> int:  # type: ignore[override]
        return self.equations

    def draw(self, seed: int | None = None) -> dict[str, Drawn]:
        seed = self.seed if seed is None else seed
        problem = self.problem(seed)
        return {kind: problem.descend(order) for kind, order in self.orders(seed).items()}

    def problem(self, seed: int) -> LeastSquares:
        """The equations. Raises `InputError` for too many of them."""
        T, q, count = self.documents, self.equations, self.documents + self.held_out
        if count * q > MOST:
            raise InputError(
                f"{self.name}: documents = {T}, held_out = {self.held_out} and equations = {q} "
                f"make {count * q} equations, more than {MOST}: ask for fewer"
            )
        d, rng = self.weights * T, generator(seed, "documents")
        common, own = rng.normal(size=(q, d)), rng.normal(size=(count, q, d))
        X = np.sqrt(1 - self.share) * own + np.sqrt(self.share) * common
        X *= np.sqrt(q / d)
        return LeastSquares(X, rng.normal(size=(count, q)), np.zeros(d), T, self.lr, self.steps)
