"""The estimates of a dataset that stand for the others: of all weights, at the last time. What runs
are put side by side by (`baseline`, `calibration`)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import xarray as xr

from recovery_probe.analyze import estimate
from recovery_probe.analyze.estimate import Estimate

WHOLE = ("group", "size")  # dimensions of which `total` stands for all
TIMES = ("epoch", "episodes_done")  # … of which the last does, of those that have a value
KINDS = ("reading", "part")  # … of which each is shown
SIDES = ("run", "control", "other")  # … of runs; the first is asked for, or the one at a place


def salient(dataset: xr.Dataset, side: int = 0) -> dict[str, Estimate]:
    """`score, curve` -> the estimate, of every estimate that has such a place. `side`: of which
    run, 0 itself, 1 its first control; those of differences between runs are of side 0 alone."""
    found: dict[str, Estimate] = {}
    for name in estimate.names(dataset):
        array = dataset[name]
        strange = set(array.dims) - {*WHOLE, *TIMES, *KINDS, *SIDES}
        if strange or (side and "run" not in array.dims):
            continue
        places: dict[str, Any] = {}
        for dimension in map(str, array.dims):
            labels = array[dimension].values
            if dimension in SIDES:
                at = side if dimension == "run" else 0
                places[dimension] = labels[at] if at < len(labels) else None
            elif dimension in WHOLE:
                places[dimension] = "total" if "total" in labels else None
        if None in places.values():
            continue
        kinds = [d for d in KINDS if d in array.dims]
        for words in itertools.product(*(array[d].values.tolist() for d in kinds)):
            place = places | dict(zip(kinds, words, strict=True))
            last = _last(array.sel(place))
            if last is not None:
                found[", ".join([name, *words])] = estimate.get(dataset, name, **place, **last)
    return found


def _last(array: xr.DataArray) -> dict[str, Any] | None:
    """The last labels along time at which there is a value; None where there is none."""
    if not array.ndim:
        return {}
    (dimension,) = array.dims  # no estimate has both kinds of time
    known = np.flatnonzero(np.isfinite(array.values))
    return {str(dimension): array[dimension].values[known[-1]]} if len(known) else None
