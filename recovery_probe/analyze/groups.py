"""Runs that belong together: a run and its controls, several seeds of both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from recovery_probe import config
from recovery_probe.errors import InputError
from recovery_probe.settings import Seed

if TYPE_CHECKING:
    from recovery_probe.record.run import Run

# The part of the settings in which a run and its control may differ.
FREE = "schedule"


def check_controls(run: Run, controls: Sequence[Run]) -> None:
    """Raise `InputError` unless every control differs from the run in its schedule, and in that
    alone."""
    for control in controls:
        differing = _differing(run, control, FREE)
        if differing:
            values = ", ".join(f"{name} ({a!r}, {b!r})" for name, (a, b) in differing.items())
            raise InputError(
                f"{control.path}: not a control of {run.path}; beside the schedule they differ "
                f"in {values}"
            )
        if np.array_equal(run.schedule.values, control.schedule.values):
            raise InputError(
                f"{control.path}: not a control of {run.path}: its schedule is the same, "
                f"{control.config.schedule.kind}; leave it out"
            )
        if list(run.record.digest.values) != list(control.record.digest.values):
            raise InputError(f"{control.path}: not a control of {run.path}; documents differ")
        start = run.losses[0].values, control.losses[0].values
        if not np.allclose(*start, rtol=1e-3, equal_nan=True):
            raise InputError(f"{control.path}: not a control of {run.path}; initial losses differ")


def _differing(run: Run, other: Run, free: str) -> dict[str, Any]:
    """Setting -> its two values, wherever two runs differ in what decides their numbers, but for
    a `free` part."""
    differences = config.differences(run.config, other.config, roles=("numbers",))
    return {n: pair for n, pair in differences.items() if n.partition(".")[0] != free}


def seeds_and_controls(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The first run and those that differ from it in the seed alone; and the others, which are
    to be controls. A run with a seed that is there already is a control too; its twin is neither,
    unless it comes first."""
    seeds: list[Run] = []
    controls: list[Run] = []
    for run in [*runs[:1], *(r for r in runs[1:] if r.provenance.get("role") != "twin")]:
        same = not seeds or not _differing(seeds[0], run, "seed")
        new = run.config.seed not in [s.config.seed for s in seeds]
        (seeds if same and new else controls).append(run)
    return seeds, controls


def same_weights(runs: Sequence[Run]) -> list[str]:
    """Of revisions of a model whose runs began from the same weights (`weights` in their
    provenance), which they are: a warning for each model. (86 of the 154 step branches of
    pythia-2.8b hold the final weights.)"""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for run in runs:
        model, weights = run.config.model, run.provenance.get("weights")
        if weights and model.source != "random" and model.weights == "own":
            found.setdefault((model.source, weights), {})[model.revision] = None
    return [
        f"{source}: the revisions {', '.join(revisions)} hold the same weights: they are "
        "one point, not several"
        for (source, _), revisions in found.items()
        if len(revisions) > 1
    ]


def match(runs: Sequence[Run], controls: Sequence[Run]) -> list[tuple[Run, list[Run]]]:
    """Each run with its controls, those of its seed, in one order of schedules for all. Raises
    `InputError` for a control that belongs to none, and when some of several runs have fewer
    controls than others, or of other schedules."""
    if controls and not runs:
        raise InputError(f"{controls[0].path}: a control of no run")
    for run in runs[1:]:
        differing = _differing(runs[0], run, "seed")
        if differing:
            raise InputError(
                f"{run.path}: not another seed of {runs[0].path}; they differ in "
                f"{', '.join(differing)}"
            )
    by_seed: dict[Seed, tuple[Run, list[Run]]] = {run.config.seed: (run, []) for run in runs}
    if len(by_seed) < len(runs):
        raise InputError(
            "two of the runs have one seed: "
            + ", ".join(f"{r.path} ({r.config.seed})" for r in runs)
        )
    for control in controls:
        run, own = by_seed.get(control.config.seed, (runs[0], []))
        check_controls(run, [control])
        own.append(control)
    counts = {len(own) for _, own in by_seed.values()}
    if len(counts) > 1:
        numbers = ", ".join(f"{run.path} ({len(own)})" for run, own in by_seed.values())
        raise InputError(f"every seed needs as many controls as the others: {numbers}")
    groups = [(run, sorted(own, key=_schedule)) for run, own in by_seed.values()]
    for run, own in groups:
        if list(map(_schedule, own)) != list(map(_schedule, groups[0][1])):
            raise InputError(
                f"every seed needs controls of the same schedules as the others: those of "
                f"{run.path} are {_schedules(own)}, those of {groups[0][0].path} "
                f"{_schedules(groups[0][1])}"
            )
    return groups


def _schedule(run: Run) -> str:
    """`shuffled (keep_first True)`: its schedule, with the schedule's own settings."""
    own = ", ".join(f"{name} {value}" for name, value in run.config.schedule.own.items())
    return run.config.schedule.kind + (f" ({own})" if own else "")


def _schedules(runs: Sequence[Run]) -> str:
    return ", ".join(map(_schedule, runs))


def common(runs: Sequence[Run]) -> int:
    """Episodes that all of a run and its controls have done."""
    return min(run.episodes_done for run in runs)


def compared(runs: Sequence[Run]) -> dict[str, str]:
    """The attribute `compared` of a dataset that stops where the shortest run does, where another
    has done more: what its verdict says first."""
    shortest = min(runs, key=lambda run: run.episodes_done)
    if all(run.episodes_done == shortest.episodes_done for run in runs):
        return {}
    done = f"{shortest.path} has got: {shortest.episodes_done} episodes"
    return {"compared": f"The runs are compared as far as {done}."}


def origin(runs: Sequence[Run]) -> dict[str, Any]:
    """Attributes of the dataset of a run and its controls: which they are, those that have not
    done all their episodes, and what tells their documents from another seed's."""
    run, *controls = runs
    digests = run.record.digest.values[: run.config.documents.count]
    unfinished = [
        f"{r.path}: {r.status} after {r.episodes_done} of {r.schedule.size} episodes"
        for r in runs
        if r.episodes_done < r.schedule.size
    ]
    return {
        "runs": [str(run.path)],
        "controls": [str(control.path) for control in controls],
        "documents_digest": hashlib.sha256(" ".join(map(str, digests)).encode()).hexdigest()[:16],
    } | ({"unfinished": unfinished} if unfinished else {})


def shared_checkpoints(runs: Sequence[Run]) -> list[int]:
    """Episodes done at each checkpoint that all of them have, as far as all have got."""
    done = common(runs)
    shared = set.intersection(*(set(run.checkpoints) for run in runs))
    return sorted(time for time in shared if time <= done)


def beside(runs: Sequence[Run], of_run: Callable[[Run], xr.Dataset], **attrs: Any) -> xr.Dataset:
    """The datasets of a run and its controls along a dimension `run`, with the attributes of the
    first, `attrs`, `T` and, where it applies, `compared`."""
    # Outer: one of an uneven schedule may have more waits, and what another lacks is NaN.
    dataset = xr.concat([of_run(run) for run in runs], "run", join="outer")
    dataset = dataset.assign_coords(run=labels(runs))
    return dataset.assign_attrs(T=runs[0].config.documents.count, **compared(runs), **attrs)


def apart(dataset: xr.Dataset) -> list[xr.Dataset]:
    """The numbers of each run of a dataset."""
    return [dataset.isel(run=r) for r in range(dataset.sizes["run"])]


def labels(runs: Sequence[Run]) -> list[str]:
    """A short, distinct name for each run: its schedule, with its folder where two share one."""
    kinds = [r.config.schedule.kind for r in runs]
    names = [
        kind if kinds.count(kind) == 1 else f"{kind} ({r.path.resolve().name})"
        for kind, r in zip(kinds, runs, strict=True)
    ]
    if len(set(names)) == len(names):
        return names
    return [f"{kind} ({run.path})" for kind, run in zip(kinds, runs, strict=True)]
