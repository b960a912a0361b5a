"""What a schedule is: a plug-in that says which document each episode trains on."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from recovery_probe.errors import InputError
from recovery_probe.plugins import AUTHORS, Plugin, reason


class Schedule(Plugin):
    """The base of every schedule. Documents need not come equally often, nor in turn."""

    group: ClassVar[str] = "schedules"

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        """(episodes,): the document, 0 to `documents` - 1, of every episode of the run, which has
        `epochs` · `documents` of them unless the schedule says otherwise. `rng` is the run's own
        stream for schedules."""
        raise NotImplementedError


def document_of_episode(
    schedule: Schedule, documents: int, epochs: int, rng: np.random.Generator
) -> NDArray[np.int32]:
    """(episodes,): what a schedule says. Raises `InputError` where that is no order of the
    documents."""
    try:
        order = np.asarray(schedule.order(documents, epochs, rng))
    except InputError:
        raise
    except AUTHORS as error:
        raise InputError(f"schedule {schedule.name} failed: {reason(error)}") from error
    if order.ndim != 1 or not len(order) or order.dtype.kind not in "iu":
        raise InputError(
            f"schedule {schedule.name}: expected one document for each episode, whole numbers; got "
            f"{order.dtype} of shape {order.shape}"
        )
    if order.min() < 0 or order.max() >= documents:
        raise InputError(
            f"schedule {schedule.name}: documents {order.min()} to {order.max()}, and there are 0 "
            f"to {documents - 1}"
        )
    return order.astype(np.int32)
