"""To and fro."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recovery_probe.schedules import Schedule


@dataclass
class Palindrome(Schedule):
    """The cycle forwards and backwards, epoch by epoch. An order and its mirror cancel what hangs
    on the order to the second power of the learning rate (arXiv 2604.00260). Waits are of 1 to
    2T - 1 episodes, and documents at the ends come twice in a row."""

    name = "palindrome"

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        there = np.arange(documents)
        return np.concatenate([there[:: -1 if epoch % 2 else 1] for epoch in range(epochs)])
