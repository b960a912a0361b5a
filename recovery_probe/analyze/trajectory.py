"""What the trajectory's analyses share: updates by episode, and run minus control."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from einops import rearrange
from numpy.typing import NDArray

from recovery_probe import stats
from recovery_probe.analyze import estimate
from recovery_probe.analyze.estimate import Estimate

if TYPE_CHECKING:
    from recovery_probe import Run


def updates(run: Run, episodes: int) -> xr.DataArray:
    """(episode, module, sketch): the update of every episode of the whole epochs among the first
    `episodes`."""
    T = run.config.documents.count
    total = episodes // T * T
    moved = run.weight_trajectory()[: total + 1].diff("episodes_done")
    return moved.rename(episodes_done="episode").assign_coords(episode=np.arange(total))


def vectors(moved: xr.DataArray, which: NDArray[np.bool_]) -> stats.Floats:
    """(E·T, at most E·T): the updates of a group of modules, up to a rotation of the sketches."""
    return stats.compact(flat(moved, which))


def flat(moved: xr.DataArray, which: NDArray[np.bool_]) -> stats.Floats:
    """(E·T, d): the sketches of the updates of a group of modules, side by side."""
    return rearrange(moved.values[:, which], "episode module sketch -> episode (module sketch)")


def untested(value: stats.Floats) -> Estimate:
    """A value that one run gives neither an interval nor a p-value; several seeds do."""
    none = np.full_like(value, np.nan)
    return Estimate(value, none, none)


def minus_controls(dataset: xr.Dataset, *names: str) -> xr.Dataset:
    """With NAME_difference (control, …) of each estimate (run, …): the run's value minus that of
    each control. One run gives it no interval: a trajectory cannot be drawn again."""
    dataset = dataset.assign_coords(control=dataset.run.values[1:])
    for name in names:
        value = dataset[name].transpose("run", ...)
        difference = untested(value.values[:1] - value.values[1:])
        difference = replace(difference, null=np.zeros_like(difference.value))
        dims = ("control", *value.dims[1:])
        estimate.put(dataset, f"{name}_difference", dims, difference)
    return dataset


def differences(dataset: xr.Dataset, name: str, what: str, form: str = "+.2f") -> str:
    """` Run minus control, WHAT: +0.40 (shuffled; one run, no interval).`, of an estimate of
    `minus_controls`; nothing where there is no control."""
    said = []
    for control in dataset.control.values:
        difference = estimate.get(dataset, f"{name}_difference", control=control)
        beside = "one run, no interval"
        if np.isfinite(difference.low):
            beside = f"{difference.low:{form}} to {difference.high:{form}} over {difference.over}"
        value = "not defined" if np.isnan(difference.value) else f"{difference.value:{form}}"
        said.append(f"{value} ({control}; {beside})")
    return f" Run minus control, {what}: {', '.join(said)}." if said else ""
