"""What a simulation is: a plug-in that makes a run and its control of a process in which the truth
is known. No network is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from recovery_probe.plugins import Plugin
from recovery_probe.record.layout import Array
from recovery_probe.schedules import document_of_episode
from recovery_probe.schedules.cyclic import Cyclic
from recovery_probe.schedules.shuffled import Shuffled
from recovery_probe.seeds import generator
from recovery_probe.stats import Floats

# The first is the run, the others are its controls. No document is kept first: one that waits for
# exactly T episodes every time would be a cycle in the control.
SCHEDULES = (Cyclic(), Shuffled(keep_first=False))
Order = NDArray[np.int32]


@dataclass(frozen=True)
class Recorded:
    """What a recorder would have written of a process."""

    rows: dict[str, tuple[Array, NDArray[Any]]]  # array name -> its layout, (time, …) rows
    coords: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # name -> dims, values
    settings: dict[str, Any] = field(default_factory=dict)  # the recorder's, where not its defaults
    since: int = 0  # the first time of its rows


@dataclass(frozen=True)
class Drawn:
    """One run of a process, in memory."""

    schedule: Order  # (E·T,): the document of each episode
    losses: Floats  # (E·T + 1, T + H): row k after k episodes, held-out documents last
    train_loss: Floats  # (E·T·M,): right before each step, of the document trained on
    recorded: dict[str, Recorded] = field(default_factory=dict)  # by the recorder's name

    @property
    def updates(self) -> Floats:
        """(E·T, d): how the weights move in each episode, modules side by side. `KeyError` of a
        process that has none."""
        moved = self.recorded["weight_deltas"].rows["sketched"][1]
        return moved.reshape(len(moved), -1)


@dataclass
class Simulation(Plugin):
    """The base of every simulation: override `draw`, and the texts.

    The fields here are those that every run has. An attribute `lr` is the run's learning rate; all
    other fields are the simulation's own, and stand in the run's settings under its name.
    """

    group: ClassVar[str] = "simulations"
    positions: ClassVar[int] = 2  # of a document; the least that a run may have

    # T, documents trained on; at least 2
    documents: Annotated[int, Ge(2)] = 20
    # H, documents evaluated like the others and never trained on
    held_out: Annotated[int, Ge(0)] = 5
    # E, passes over the documents; at least 1
    epochs: Annotated[int, Ge(1)] = 6
    # M, gradient steps per episode; at least 1
    steps: Annotated[int, Ge(1)] = 10
    # decides all that is random
    seed: Annotated[int, Ge(0)] = 0

    def draw(self, seed: int | None = None) -> dict[str, Drawn]:
        """Schedule -> the process under it: the cyclic run, then its control of the same documents
        and the same start. Writes nothing. `seed` in place of the simulation's own."""
        raise NotImplementedError

    def orders(self, seed: int) -> dict[str, Order]:
        """Schedule -> (E·T,): the document of each episode."""
        return {
            schedule.name: document_of_episode(
                schedule, self.documents, self.epochs, generator(seed, "schedule")
            )
            for schedule in SCHEDULES
        }
