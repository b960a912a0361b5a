"""What the losses that only forget have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt
from einops import rearrange

from recovery_probe.seeds import generator
from recovery_probe.simulations import Drawn, Order, Recorded, Simulation
from recovery_probe.simulations.modules import of_updates
from recovery_probe.stats import Floats, Ints

COORDINATES = 64  # of weights that move, in each half


@dataclass
class ByAge(Simulation):
    """The base of processes in which a loss depends on the document's age alone, and on what a
    simulation adds: 1 nat is forgotten, as 1 - exp(-age / tau), where age 0 is right after an
    episode on the document."""

    # Nats: of a document just trained on, and of one that never was.
    floor: ClassVar[float] = 5.0
    untrained: ClassVar[float] = 8.0

    # episodes in which a document loses 1 - 1/e of what it can forget
    tau: Annotated[float, Gt(0)] = 4.0
    # standard deviation of noise of each document's own, nats, of the 1 that is forgotten
    noise: Annotated[float, Ge(0)] = 0.05

    def draw(self, seed: int | None = None) -> dict[str, Drawn]:
        seed = self.seed if seed is None else seed
        drawn = {}
        for kind, order in self.orders(seed).items():
            rng = generator(seed, f"noise {kind}")
            losses = self.losses(order, kind, rng)
            recorded = self.recorded(order, generator(seed, "documents"), rng)
            drawn[kind] = Drawn(order, losses, self.training(order, losses), recorded)
        return drawn

    def losses(self, order: Order, kind: str, rng: np.random.Generator) -> Floats:
        """(E·T + 1, T + H)"""
        age = self.ages(order)
        losses = np.where(age < 0, self.untrained, self.floor + self.forgotten(age))
        return losses + self.noises(age, rng)

    def recorded(
        self, order: Order, shared: np.random.Generator, own: np.random.Generator
    ) -> dict[str, Recorded]:
        """What recorders would have written; `shared` gives a run and its control the same
        numbers. Nothing, of a process of losses alone."""
        return {}

    def forgotten(self, age: Ints) -> Floats:
        """Nats that a document of this age has forgotten."""
        return 1 - np.exp(-age / self.tau)

    def noises(self, age: Ints, rng: np.random.Generator) -> Floats:
        """Independent, in every row but the untrained one, which a run and its control share."""
        noise = self.noise * rng.normal(size=age.shape)
        noise[0] = 0
        return noise

    def ages(self, order: Order) -> Ints:
        """(E·T + 1, T + H): episodes since a document's last one; negative before its first."""
        ages = np.full((len(order) + 1, self.documents + self.held_out), -1)
        for episode, document in enumerate(order):
            ages[episode + 1 :, document] = np.arange(len(order) - episode)
        return ages

    def training(self, order: Order, losses: Floats) -> Floats:
        """(E·T·M,): straight down in an episode, from the loss before it to the loss after it."""
        episode = np.arange(len(order))
        before, after = losses[episode, order], losses[episode + 1, order]
        share = np.arange(self.steps) / self.steps
        steps = before[:, None] + (after - before)[:, None] * share
        return rearrange(steps, "episode step -> (episode step)")


def drifting(
    speed: Floats, rough: float, shared: np.random.Generator, own: np.random.Generator
) -> dict[str, Recorded]:
    """`weight_deltas` of weights that move along one line, at a `speed` (episode,), and at random:
    a step of `rough` in all, on the average, in directions that have nothing to do with one
    another."""
    shape = (2, COORDINATES)
    line = shared.normal(size=shape)
    walk = own.normal(size=(len(speed), *shape)) * rough / np.sqrt(line.size)
    moved = speed[:, None, None] * line / np.linalg.norm(line) + walk
    return {"weight_deltas": of_updates(moved)}
