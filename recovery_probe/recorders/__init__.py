"""What a recorder is: a plug-in that watches training and writes named arrays.

It says beforehand what it will write, then gets one read-only `Step` or `Episode` at each moment,
and returns named rows or nothing:

    start(training) -> Layout      before_step(step)     after_backward(step)     after_step(step)
    after_episode(episode)         committed(episode)    finish() -> facts for the provenance

`after_episode` is also called once before training, with `done = 0`. Forward hooks that it asks
for in its layout see the training passes, or the evaluations, and return rows in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from recovery_probe.moments import Episode as Episode
from recovery_probe.moments import Step as Step
from recovery_probe.plugins import Plugin, in_words, settings_of
from recovery_probe.record.layout import EPISODE as EPISODE
from recovery_probe.record.layout import STEP as STEP
from recovery_probe.record.layout import Array as Array

if TYPE_CHECKING:
    from recovery_probe.training import Training

Rows = Mapping[str, Any] | None  # array name -> its row at this moment


@dataclass(frozen=True)
class Hook:
    """A forward hook: `function(tensor, *, hook, moment)`, where `moment` is the `Step`, or for an
    evaluation the range of documents in the batch. Whatever it returns is recorded, never put in
    place of the tensor."""

    name: str  # of the hook point
    function: Callable[..., Rows]
    during: Literal["training", "evaluation"] = "training"


@dataclass(frozen=True)
class Layout:
    """Everything a recorder will write and where it looks."""

    # name -> what its rows are
    arrays: dict[str, Array] = field(default_factory=dict)
    # name -> dimension or dimensions, values
    coords: dict[str, tuple[str | tuple[str, ...], Any]] = field(default_factory=dict)
    # time dimension -> how often, as `Timeline.due` reads it; always when not said
    every: dict[str, str] = field(default_factory=dict)
    # time dimension -> the first time that anything is due; the run's first when not said
    since: dict[str, int] = field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    files: int = 0  # bytes written beside the record


class Recorder(Plugin):
    """The base of every recorder: override `start` and the moments you need."""

    group: ClassVar[str] = "recorders"
    # Called at every step and episode, due or not, by a recorder that adds something up between
    # due ones.
    sees_every_step: ClassVar[bool] = False
    # Sends documents through the model itself, where no intervention acts.
    makes_passes: ClassVar[bool] = False

    def __str__(self) -> str:
        settings = in_words(settings_of(self))
        return f"{self.name} ({', '.join(settings)})" if settings else self.name

    def start(self, training: Training) -> Layout:
        """Say what will be written. Raises `InputError` when it cannot be recorded so."""
        raise NotImplementedError

    def rehearse(self) -> float | None:
        """Do the work of one call on stand-in data, timed before training to tell its share; or
        do a part of it, and return how many such parts a call has."""

    def before_step(self, step: Step) -> Rows:
        """Before the forward pass."""

    def after_backward(self, step: Step) -> Rows:
        """Gradients are there; weights have not moved."""

    def after_step(self, step: Step) -> Rows:
        """Weights have moved; gradients are still there."""

    def after_episode(self, episode: Episode) -> Rows:
        """All documents have been evaluated."""

    def committed(self, episode: Episode) -> None:
        """All rows of the episode are on the disk, and count."""

    def state(self) -> dict[str, Any]:
        """What it remembers from one episode to the next, beside what `start` makes: tensors,
        arrays, numbers and text, in dicts and lists. A run that goes on from a checkpoint gives it
        back, to `restore`, after `start`."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what `state` gave."""

    def finish(self) -> dict[str, Any]:
        """Facts for the provenance, as JSON can hold them. `seconds`, `share` and `rows_missing`
        are said by others."""
        return {}
