"""What a schedule is: a plug-in that says which document each episode trains on."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from recovery_probe import config
from recovery_probe.errors import InputError
from recovery_probe.plugins import AUTHORS, Plugin, reason
from recovery_probe.record.layout import Timeline
from recovery_probe.seeds import generator
from recovery_probe.settings import Settings


class Schedule(Plugin):
    """The base of every schedule. Documents need not come equally often, nor in turn."""

    group: ClassVar[str] = "schedules"

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> NDArray[np.integer]:
        """(episodes,): the document, 0 to `documents` - 1, of every episode of the run, which has
        `epochs` · `documents` of them unless the schedule says otherwise. `rng` is the run's own
        stream for schedules."""
        raise NotImplementedError

    def per_epoch(self, documents: int, epochs: int) -> int:
        """Episodes of an epoch: after which documents come back, where they do. What is due by the
        epoch, and what is labelled by it, asks this."""
        return documents

    def lengths(self, documents: int, epochs: int) -> tuple[int, ...]:
        """Episodes of each epoch from the first on, as far as they are not of `per_epoch`."""
        return ()


def check_epoch(after: int, epochs: int) -> None:
    """Raise `InputError` unless something comes before and after that many epochs."""
    if not 1 <= after < epochs:
        raise InputError(
            f"schedule.after = {after}: expected 1 to {epochs - 1}, of the {epochs} epochs"
        )


def fresh_ones(
    setting: str, fixed: int, new: int, documents: int, epochs: int
) -> NDArray[np.integer]:
    """(epochs, new): documents that come once, those after the `fixed` first. Raises `InputError`
    where `documents` are not as many as it takes. `setting`: what `new` is called."""
    wanted = fixed + new * epochs
    if documents != wanted:
        raise InputError(
            f"documents.count = {documents}: {fixed} that come every epoch and {new} new ones "
            f"({setting}) in each of {epochs} epochs are {wanted}"
        )
    return np.arange(fixed, wanted).reshape(epochs, new)


def planned(settings: Settings) -> Timeline:
    """The schedule that settings ask for. Raises `InputError` where there is none such."""
    T, schedule = settings.documents.count, config.made(settings, "schedule")
    rng = generator(settings.seed.order, "schedule")
    order = document_of_episode(schedule, T, settings.epochs, rng)
    per_epoch = schedule.per_epoch(T, settings.epochs)
    lengths = tuple(schedule.lengths(T, settings.epochs))
    if not all(isinstance(length, int) and length > 0 for length in (per_epoch, *lengths)):
        raise InputError(
            f"schedule {schedule.name}: epochs of {per_epoch} episodes, and {list(lengths)} at "
            "first: expected whole numbers above 0"
        )
    return Timeline(order, T, settings.steps, per_epoch, lengths)


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
