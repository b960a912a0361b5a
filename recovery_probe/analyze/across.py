"""The datasets of several seeds, made one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from recovery_probe import stats
from recovery_probe.analyze import estimate
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.errors import InputError


def across(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """One dataset from those that an analysis made of several seeds.

    Estimates become their mean, with `_sd` and, as `_low` and `_high`, a 95% t interval, over
    seeds; each seed's value is kept as `_each` (seed, …), and where some have none, `_n` is how
    many do. P-values are combined by Fisher's method. Other numbers are averaged; what is not a
    real number is kept by seed where it differs. An attribute `of_seeds` says otherwise: `sum` of
    counts, `each` of what is kept by seed in any case, `the first` of coordinates that mean nothing
    from seed to seed.

    Raises `InputError` when the datasets differ in variables, shapes or coordinates.
    """
    if len(datasets) == 1:
        return datasets[0]
    first = datasets[0]
    for dataset in datasets[1:]:
        _check_alike(first, dataset)
    estimates = estimate.names(first)
    parts = {v for name in estimates for v in estimate.companions(first, name).values()}
    out = first[[]].assign_coords(first.coords)
    for name in (n for n in map(str, first.data_vars) if n not in parts):
        values = np.stack([d[name].values for d in datasets])
        dims, attrs = first[name].dims, first[name].attrs
        if name in estimates:
            estimate.put(out, name, dims, _of_seeds(datasets, name, values), **attrs)
            continue
        same = all(np.array_equal(values[0], other) for other in values)
        match attrs.get("of_seeds"):
            case "the first":
                out[name] = (dims, values[0], attrs)
            case "sum":
                out[name] = (dims, values.sum(axis=0), attrs)
            case None if values.dtype.kind == "f":
                out[name] = (dims, stats.mean_of_counted(values, axis=0), attrs)
            case None if same:
                out[name] = (dims, values[0], attrs)
            case _:
                out[name] = (("seed", *dims), values, attrs)
    fewer = any("n" in estimate.companions(out, name) for name in estimates)
    out.attrs = first.attrs | {
        "unit": f"{len(datasets)} seeds",
        "interval": f"95% t interval over {len(datasets)} seeds"
        + (", fewer where a seed has no value: see the names that end in _n" if fewer else ""),
    }
    return out


def _of_seeds(datasets: Sequence[xr.Dataset], name: str, values: stats.Floats) -> Estimate:
    """Of (seed, …) values and their p-values."""
    p = [estimate.get(dataset, name).p for dataset in datasets]
    counted = np.isfinite(values)
    low, high = stats.t_interval(values)
    return Estimate(
        stats.mean_of_counted(values, axis=0),
        low,
        high,
        sd=stats.sd_of_counted(values),
        p=None if p[0] is None else stats.fisher(np.stack(p)),
        n=None if counted.all() else counted.sum(axis=0),
        each=values,
    )


def _check_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    """Raise `InputError` unless two seeds' numbers stand at the same places. Names of runs may
    differ in their folder."""
    names = set(first.data_vars) | set(first.coords)
    differing = names ^ (set(other.data_vars) | set(other.coords))
    if differing:
        raise InputError(f"the seeds' numbers differ: {', '.join(sorted(map(str, differing)))}")
    for name in first.data_vars:
        if first[name].shape != other[name].shape:
            raise InputError(
                f"the seeds' numbers differ in shape ({name}: {first[name].shape}, "
                f"{other[name].shape}): have all of the runs got as far?"
            )
    for name in first.coords:
        a, b = first[name].values.tolist(), other[name].values.tolist()
        if name in ("run", "control", "against"):
            a, b = ([str(v).partition(" (")[0] for v in values] for values in (a, b))
        if a != b:
            raise InputError(f"the seeds' numbers stand at other places: {name} is {a} and {b}")
