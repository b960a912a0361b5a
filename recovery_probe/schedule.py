"""Which document each episode trains on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recovery_probe.config import Settings, generator


def document_of_episode(settings: Settings) -> NDArray[np.int32]:
    """The document of each of the E·T episodes, in order (paper, section 3 and appendix A).

    A shuffled schedule draws a new order every epoch, the first included; unless
    `schedule.keep_first` is false, document 0 opens every epoch.
    """
    T, E = settings.documents.count, settings.epochs
    if settings.schedule.kind == "cyclic":
        return np.tile(np.arange(T, dtype=np.int32), E)
    rng = generator(settings.seed, "schedule")
    first = 1 if settings.schedule.keep_first else 0
    order = [[*range(first), *(first + rng.permutation(T - first))] for _ in range(E)]
    return np.array(order, dtype=np.int32).ravel()
