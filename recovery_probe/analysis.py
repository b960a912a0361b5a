"""What an analysis is: a question put to a run, with what its answer would be if there were
nothing to see, and what it cannot see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recovery_probe import config
from recovery_probe.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from recovery_probe.run import Run

# Settings in which a run and its control may differ.
FREE = ("schedule.kind", "schedule.keep_first", "control", "device", "eval_batch")


@dataclass(frozen=True)
class Analysis:
    """A plug-in: one file, one instance named `ANALYSIS`."""

    name: str
    question: str
    null: str  # what it would show if there were no effect
    blind_spot: str  # what it cannot tell apart
    # compute(run, *, controls=()) -> numbers, with dimensions, units and how they were made
    compute: Callable[..., xr.Dataset]
    # plot(dataset) -> figure; computes nothing
    plot: Callable[[xr.Dataset], Figure]
    # summary(dataset) -> what JSON can hold; `verdict`, if there, is a sentence for the report
    summary: Callable[[xr.Dataset], dict[str, Any]]


def check_controls(run: Run, controls: Sequence[Run]) -> None:
    """Raise `InputError` unless every control differs from the run in its schedule alone."""
    for control in controls:
        differing = config.differences(run.config, control.config)
        differing = {
            name: pair
            for name, pair in differing.items()
            if name.partition(".")[0] not in config.WATCHING and name not in FREE
        }
        if differing:
            told = ", ".join(f"{name} ({a!r}, {b!r})" for name, (a, b) in differing.items())
            raise InputError(
                f"{control.path}: not a control of {run.path}; beside the schedule they differ "
                f"in {told}"
            )
        if list(run.record.digest.values) != list(control.record.digest.values):
            raise InputError(f"{control.path}: not a control of {run.path}; documents differ")
        start = run.losses[0].values, control.losses[0].values
        if not np.allclose(*start, rtol=1e-3, equal_nan=True):
            raise InputError(f"{control.path}: not a control of {run.path}; initial losses differ")


def labels(runs: Sequence[Run]) -> list[str]:
    """A short, distinct name for each run."""
    short = [r.path.resolve().name for r in runs]
    return short if len(set(short)) == len(short) else [str(r.path) for r in runs]


def number(value: Any) -> float | None:
    """A JSON number: NaN becomes null."""
    return None if np.isnan(value) else round(float(value), 6)


def numbers(values: Any) -> list[Any]:
    """A JSON list, of lists for more than one dimension, with null for NaN."""
    array = np.asarray(values)
    return [number(v) if array.ndim == 1 else numbers(v) for v in array]


def with_interval(value: float, low: float, high: float) -> str:
    """`0.42 [0.37, 0.48]`, or what is missing in words."""
    if np.isnan(value):
        return "not defined"
    told = "interval not defined" if np.isnan(low) else f"{low:.2f}, {high:.2f}"
    return f"{value:.2f} [{told}]"
