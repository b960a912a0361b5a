"""Documents whose shared part has to be learned: the planted truth of H1, in plain numpy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from einops import einsum

from recovery_probe.seeds import generator
from recovery_probe.simulations import Drawn, Order, Simulation
from recovery_probe.stats import Floats, cosines

WEIGHTS = 400  # of a document's own part


@dataclass
class LearnedComponent(Simulation):
    """A network of two layers, f_k = R_k w + Z_k G v, fitted to targets N(0, 1) by plain descent on
    w, G and v.

    R_k is a document's own, and Z_k = A + cos θ_k B + sin θ_k C is shared, the more the nearer two
    documents are in the cycle. But the features G that see it begin as `start` times the identity,
    and v at 0: of the kernel R_j R_kᵀ + Z_j (GGᵀ + |v|² 1) Z_kᵀ the second part is next to nothing
    until they are learned, and a network linearised at the start never has it.
    """

    name = "learned_component"
    share: float = 0.8
    equations: int = 20
    lr: float = 0.4
    start: float = 0.01

    @cached_property
    def documents_drawn(self) -> tuple[Floats, Floats, Floats]:
        """(document, equation, weight) R and Z, and (document, equation) targets."""
        rng, q = generator(self.seed, "documents"), self.equations
        count = self.documents + self.held_out
        place = np.arange(count) / self.documents
        place[self.documents :] = rng.random(self.held_out)
        turn = 2 * np.pi * place[:, None, None]
        A, B, C = rng.normal(size=(3, q, q))
        R = np.sqrt((1 - self.share) * q / WEIGHTS) * rng.normal(size=(count, q, WEIGHTS))
        Z = np.sqrt(self.share / 2) * (A + np.cos(turn) * B + np.sin(turn) * C)
        return R, Z, rng.normal(size=(count, q))

    def train(
        self, order: Order, linearised_after: int | None = None
    ) -> tuple[Floats, list[tuple[Floats, Floats]]]:
        """(row, document) losses, and (G, v) at each row; from so many episodes on that of the
        network linearised there."""
        R, Z, y = self.documents_drawn
        w, v = np.zeros(WEIGHTS), np.zeros(self.equations)
        G = self.start * np.eye(self.equations)
        held: tuple[Floats, Floats] | None = None

        def errors(which: slice) -> Floats:
            G0, v0 = held or (G, v)
            return R[which] @ w + Z[which] @ (G0 @ v + (G - G0) @ v0) - y[which]

        rows, layers = [errors(slice(None))], [(G, v)]
        for episode, k in enumerate(order):
            if episode == linearised_after:
                held = G, v
            for _ in range(self.steps):
                G0, v0 = held or (G, v)
                step = self.lr / self.equations * errors(slice(k, k + 1))[0]
                w, towards = w - R[k].T @ step, Z[k].T @ step
                G, v = G - np.outer(towards, v0), v - G0.T @ towards
            rows.append(errors(slice(None)))
            layers.append((G, v))
        return (np.stack(rows) ** 2 / 2).mean(axis=2), layers

    def draw(self, seed: int | None = None) -> dict[str, Drawn]:
        assert seed in (None, self.seed)
        drawn = {}
        for kind, order in self.orders(self.seed).items():
            losses, _ = self.train(order)
            before = losses[np.arange(len(order)), order]
            drawn[kind] = Drawn(order, losses, np.repeat(before, self.steps))
        return drawn

    def kernel(self, layers: tuple[Floats, Floats]) -> Floats:
        """(T, T + H) cosines of documents by the trace of their kernel."""
        R, Z, _ = self.documents_drawn
        G, v = layers
        own = einsum(R, R, "j q d, k q d -> j k")
        features = Z @ G
        seen = einsum(features, features, "j q h, k q h -> j k")
        moved = np.sum(v**2) * einsum(Z, Z, "j q h, k q h -> j k")
        return cosines(own + seen + moved)[: self.documents]
