"""What analyses need of a run and its controls: each is checked before anything is computed, and
says the mend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recovery_probe import stats
from recovery_probe.analyze.analysis import RUN, Analysis, Need
from recovery_probe.analyze.groups import common, shared_checkpoints
from recovery_probe.errors import Missing
from recovery_probe.record import mends

if TYPE_CHECKING:
    from recovery_probe.record.run import Run

__all__ = ["RUN", "Need", "checkpoints", "epochs", "evenly", "once_an_epoch", "recorded", "twin"]


def recorded(name: str, every_episode: bool = False, epochs: int | None = None) -> Need:
    """A recorder, and that none of its times leaves out an episode: one that watches steps has the
    first of each episode, and so stretches that end with each. `epochs`: what is after
    each episode of the last so many epochs that all have begun suffices."""

    def check(_: Analysis, runs: Sequence[Run]) -> None:
        done = common(runs)
        for run in runs:
            if epochs is not None:
                _of_the_last(epochs, run, name, done)
                continue
            dataset = run.recorder(name)
            start, stop = dataset.attrs.get("replayed", {}).get("episodes", (0, done))
            if start > 0 or stop < done:
                raise Missing(
                    f"{run.path}: {name} was replayed for episodes {start}:{stop} alone; "
                    f"{mends.replay(run.path, name)} --overwrite has all"
                )
            due = {"step": np.arange(done) * run.config.steps, "episodes_done": np.arange(done + 1)}
            times = [time for time in due if time in dataset.dims]
            whole = all(np.isin(due[time], dataset[time].values).all() for time in times)
            if every_episode and not whole:
                every = dataset.attrs["every"]
                raise Missing(
                    f"{run.path}: {name}.every = {every!r} leaves out some episodes; train again "
                    f"with --{name}.every episode"
                )

    return check


def _of_the_last(epochs: int, run: Run, name: str, done: int) -> None:
    """Raise `Missing` unless a recorder has what is after each of the last epochs' episodes."""
    first = run.timeline.before_last(epochs, done)
    more = f" --{name}.epochs {run.config.epochs}" * (first < run.timeline.before_last(epochs))
    mend = f"{mends.replay(run.path, name)}{more} --episodes {first}:{done}"
    if name not in run.recorders and not mends.simulated(run.provenance):
        raise Missing(f"{run.path}: recorder {name} was off; {mend} adds it")
    if not np.isin(np.arange(first, done) + 1, run.recorder(name).episodes_done.values).all():
        raise Missing(
            f"{run.path}: {name} has not all of the episodes {first}:{done}, the last "
            f"{epochs} epochs; {mend} --overwrite has"
        )


def epochs(least: int) -> Need:
    """Whole epochs that the run and its controls have done."""

    def check(_: Analysis, runs: Sequence[Run]) -> None:
        done = common(runs)
        if done < least * max(run.timeline.per_epoch for run in runs):
            raise Missing(
                f"{runs[0].path}: {done} episodes are done, by it or a run beside it; this needs "
                f"{least} whole epoch{'s' * (least > 1)}"
            )

    return check


def evenly(_: Analysis, runs: Sequence[Run]) -> None:
    """Schedules in which all documents come equally often."""
    for run in runs:
        T, schedule = run.config.documents.count, run.schedule.values
        if not stats.is_even(schedule, T):
            counts = np.bincount(schedule, minlength=T)
            raise Missing(
                f"{run.path}: its schedule has documents {counts.min()} to {counts.max()} times; "
                "this needs all of them equally often, as cyclic and shuffled have them"
            )


def once_an_epoch(_: Analysis, runs: Sequence[Run]) -> None:
    """Schedules whose every epoch trains on each document once."""
    for run in runs:
        if not stats.once_an_epoch(run.schedule.values, run.config.documents.count):
            raise Missing(
                f"{run.path}: an epoch of its schedule does not train on each document once, as "
                "cyclic and shuffled do: its epochs are no cycles"
            )


def twin(_: Analysis, runs: Sequence[Run]) -> None:
    """A twin of the run."""
    if not runs[0].twins:
        raise Missing(f"{runs[0].path}: no twin was trained with it; train with --control twin")


def checkpoints(unless: str = "") -> Need:
    """That the model may and can be run again: `from_checkpoint`, unedited activations, and a
    checkpoint that all runs have. Not of runs that have the recorder `unless`."""

    def check(analysis: Analysis, runs: Sequence[Run]) -> None:
        again = [run for run in runs if unless not in run.recorders]
        for run in again:
            if mends.simulated(run.provenance):
                what = mends.no_checkpoint(run.provenance, 0, [])
                raise Missing(f"{run.path}: {what}, and none can be run again")
            if not getattr(analysis, "from_checkpoint", False):
                why = f"recorder {unless} was off: {mends.replay(run.path, unless)}, or"
                if not unless:
                    why = f"{analysis.name} runs the model again, which takes torch and time:"
                raise Missing(f"{run.path}: {why} pass --from-checkpoint")
            if editing := run.provenance.get("edited_by"):
                raise Missing(
                    f"{run.path}: was trained with {', '.join(editing)}: without that its model, "
                    "run again, is another network"
                )
            if not run.checkpoints:
                raise Missing(f"{run.path}: no checkpoints; train again with --record checkpoints")
        if again and not shared_checkpoints(again):
            raise Missing(f"{runs[0].path}: no checkpoint that the controls have too")

    return check
