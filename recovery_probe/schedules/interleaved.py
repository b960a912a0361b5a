"""Two cycles of different periods at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from recovery_probe.errors import InputError
from recovery_probe.schedules import Schedule


@dataclass
class Interleaved(Schedule):
    """An episode of the one cycle, an episode of the other, in turn: documents 0 to `inner` - 1
    come back every 2 · inner episodes, the others every 2 (T - inner). What follows the clock of
    one cycle cannot follow the other's. There are E · T episodes."""

    name = "interleaved"

    # documents of the first cycle, 1 or more
    inner: Annotated[int, Ge(1)] = 5

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        if self.inner >= documents:
            raise InputError(
                f"schedule.inner = {self.inner}: expected 1 to {documents - 1}, so that some of "
                f"the {documents} documents are left for the other cycle"
            )
        episode = np.arange(epochs * documents)
        turn = episode // 2
        other = self.inner + turn % (documents - self.inner)
        return np.where(episode % 2 == 0, turn % self.inner, other)
