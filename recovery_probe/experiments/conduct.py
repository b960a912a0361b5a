"""Experiments made: their arms trained, what is there already left as it is, and then analysed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recovery_probe.analyze.analysis import Analysis
from recovery_probe.analyze.groups import match
from recovery_probe.errors import InputError
from recovery_probe.experiments import Experiment, complete
from recovery_probe.machine import size_of
from recovery_probe.record.run import Run, open_run
from recovery_probe.saying import say
from recovery_probe.schedules import planned
from recovery_probe.train.announce import check_room
from recovery_probe.train.plan import Point

SHORT = 2  # seconds that a run takes before its first step


def conduct(
    experiments: Sequence[Experiment],
    runs: Run | Sequence[Run],
    controls: Sequence[Run] = (),
    *,
    out: Path | None = None,
) -> dict[str, Any]:
    """Train what experiments need beside runs and their controls, and analyse it. Returns the
    summary that `analyze` returns; `out` as there. Says beforehand how long it will take; stopped,
    the same call goes on.

    Raises `InputError`, before any training, where an experiment cannot begin; `Missing` is one.
    """
    from recovery_probe.analyze.perform import analyze

    runs = [runs] if isinstance(runs, Run) else list(runs)
    groups = match(runs, controls)
    for experiment in experiments:
        for run, own in groups:
            for need in experiment.needs:
                need(experiment, [run, *own])
    tell(experiments, groups)
    for experiment in experiments:
        for run, own in groups:
            experiment.before(run, own)
            for one in (run, *own):
                train(experiment, one)
    every = [part for experiment in experiments for part in experiment.parts()]
    parts = [part for part in every if all(part.stored(run) is not None for run in runs)]
    if len(runs) > 1 and parts:  # over seeds, in one report with what brings them together
        analyze(runs, controls, parts, out=out, anew=False)
    return analyze(runs, controls, experiments, out=out)


def left(experiment: Experiment, run: Run) -> list[Point]:
    """The arms beside a run that are not complete, also of experiments that it brings together."""
    own = [point for point in experiment.arms(run).values() if not complete(point)]
    parts = [part for part in experiment.parts() if isinstance(part, Experiment)]
    return own + [point for part in parts for point in left(part, run)]


def seconds(point: Point) -> float:
    """About how long a run takes, as the one with whose checkpoint it begins took; evaluations of
    more documents not counted."""
    assert point.begins is not None
    origin = open_run(point.begins.run)
    each = origin.provenance.get("seconds", 0) / max(1, origin.episodes_done)
    return SHORT + float(each) * planned(point.settings).episodes


def tell(experiments: Sequence[Experiment], groups: Sequence[tuple[Run, Sequence[Run]]]) -> None:
    """Say how many runs are to be trained, about how long all takes, and what is written beside
    records. Raises `InputError` where a disk has no room for that."""
    each = [run for first, own in groups for run in (first, *own)]
    points = [point for e in experiments for run in each for point in left(e, run)]
    total = sum(map(seconds, points))
    total += sum(e.seconds(run, own) for e in experiments for run, own in groups)
    if total:
        episodes = sum(planned(point.settings).episodes for point in points)
        time = f"{total / 60:.0f} min" if total > 90 else f"{total:.0f} s"
        sizes = {run.path: sum(map(int, _sizes(experiments, run))) for run in each}
        room = f", at most {size_of(sum(sizes.values()))} on disk" if any(sizes.values()) else ""
        say(
            f"{len(points)} runs to train from checkpoints, {episodes} episodes; about {time} in "
            f"all{room}"
        )
        for path, size in sizes.items():
            check_room(path, size, "make room")


def _sizes(experiments: Sequence[Analysis], run: Run) -> Iterator[int]:
    """What experiments, and those that they bring together, have yet to write beside records."""
    for one in experiments:
        if isinstance(one, Experiment):
            yield one.size(run)
            yield from _sizes(one.parts(), run)


def train(experiment: Experiment, run: Run) -> None:
    """Train the arms beside a run that are not complete. One that is optional, and cannot be, is
    left out, which is said."""
    from recovery_probe.train.fitting import fit

    if left(experiment, run):
        experiment.prepare(run)
    for name, point in experiment.arms(run).items():
        if complete(point):
            continue
        try:
            fit([point], resume=True)
        except InputError as error:
            if name not in experiment.optional:
                raise
            print(f"{experiment.name}: left out {name}: {error}", file=sys.stderr)
