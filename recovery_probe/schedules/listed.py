"""An order that is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from recovery_probe.errors import InputError
from recovery_probe.schedules import Schedule


@dataclass
class Listed(Schedule):
    """The documents in the order in which they are listed, episode by episode."""

    name = "listed"

    # the document of every episode of the run, from 0
    documents: tuple[Annotated[int, Ge(0)], ...] = ()
    # episodes of an epoch; 0 for as many as there are documents
    every: Annotated[int, Ge(0)] = 0

    def per_epoch(self, documents: int, epochs: int) -> int:
        return self.every or documents

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        length = self.per_epoch(documents, epochs)
        given = -(-len(self.documents) // length)
        if given != epochs:
            raise InputError(
                f"schedule.documents lists {len(self.documents)} episodes, {given} epochs of "
                f"{length}, and epochs = {epochs}"
            )
        return np.array(self.documents, dtype=np.int64)
