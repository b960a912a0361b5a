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


def recorded(name: str, every_episode: bool = False, epochs: int = 0) -> Need:
    """A recorder, and that none of its times leaves out an episode: one that watches steps has the
    first of each episode, and so stretches that end with each. Of the last so many `epochs` of the
    schedule that all have begun; of all for 0."""

    def check(_: Analysis, runs: Sequence[Run]) -> None:
        done = common(runs)
        for run in runs:
            since = run.timeline.last(epochs, done)
            which = f" --episodes {since}:{done}" if 0 < since < done else ""
            # What a recorder has of its last epochs is of the whole schedule's.
            more = run.config.epochs if since < run.timeline.last(epochs) else epochs
            longer = f" --{name}.epochs {more}"
            mend = f"{mends.replay(run.path, name)}{longer * (more > epochs)}{which}"
            if which and name not in run.recorders and not mends.simulated(run.provenance):
                raise Missing(f"{run.path}: recorder {name} was off; {mend} adds it")
            dataset = run.recorder(name)
            start, stop = dataset.attrs.get("replayed", {}).get("episodes", (0, done))
            if start > since or stop < done:
                raise Missing(
                    f"{run.path}: {name} was replayed for episodes {start}:{stop} alone; "
                    f"{mend} --overwrite has all{which and ' that is needed'}"
                )
            if "episodes_done" in dataset.dims and dataset.attrs.get("epochs", 0):
                first = int(run.timeline.last(dataset.attrs["epochs"]))
                if first > since:
                    raise Missing(
                        f"{run.path}: {name}.epochs = {dataset.attrs['epochs']} leaves out "
                        f"episodes that are needed; {mend}{longer * (more == epochs)} --overwrite "
                        "has them"
                    )
            begin = since + (since > 0)
            due = {
                "step": np.arange(since, done) * run.config.steps,
                "episodes_done": np.arange(begin, done + 1),
            }
            times = [time for time in due if time in dataset.dims]
            whole = all(np.isin(due[time], dataset[time].values).all() for time in times)
            if every_episode and not whole:
                every = dataset.attrs["every"]
                raise Missing(
                    f"{run.path}: {name}.every = {every!r} leaves out some episodes; train again "
                    f"with --{name}.every episode"
                )

    return check


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
