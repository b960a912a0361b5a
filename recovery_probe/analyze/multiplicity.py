"""P-values of several analyses of one run, corrected for one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import xarray as xr

from recovery_probe import stats
from recovery_probe.analyze import estimate
from recovery_probe.analyze.analysis import Analysis


def correct(datasets: Mapping[Analysis, xr.Dataset]) -> None:
    """Correct the p-values of each analysis's `tested` for how many analyses have one, in place.

    An analysis stands for itself by the smallest of them that is the run's own, corrected for the
    analysis's places. Holm's method makes each of these larger by a factor, with which all
    corrected p-values of that estimate are multiplied. The attribute `holm` says so.
    """
    known = {a: d for a, d in datasets.items() if a.tested in d}
    smallest = {analysis: _smallest(d, analysis.tested) for analysis, d in known.items()}
    tested = {analysis: p for analysis, p in smallest.items() if np.isfinite(p)}
    if len(tested) < 2:
        return
    p = np.array(list(tested.values()))
    # One of 0 is as small after any factor.
    factors = np.where(p > 0, stats.holm(p) / np.where(p > 0, p, 1.0), len(p))
    for analysis, factor in zip(tested, factors, strict=True):
        dataset, name = known[analysis], analysis.tested
        found = estimate.get(dataset, name)
        corrected = np.minimum(within(dataset, name) * factor, 1.0)
        dims, attrs = dataset[name].dims, dataset[name].attrs
        estimate.put(dataset, name, dims, replace(found, p_adjusted=corrected), **attrs)
        dataset.attrs["holm"] = f"Holm over {len(tested)} analyses"


def within(dataset: xr.Dataset, name: str) -> stats.Floats:
    """P-values of an estimate, corrected for its places: as the analysis says, or by Holm's method
    for those of each run."""
    found = estimate.get(dataset, name)
    if found.p_adjusted is not None:
        return np.asarray(found.p_adjusted)
    return holm_by_run(np.asarray(found.p, dtype=float), dataset[name].dims)


def holm_by_run(p: stats.Floats, dims: tuple[object, ...]) -> stats.Floats:
    """P-values corrected for all places of one run, by Holm's method. A control's are no further
    tries at the question that is put to the run."""
    if "run" not in dims:
        return stats.holm(p)
    axis = dims.index("run")
    each = [stats.holm(of_run) for of_run in np.moveaxis(p, axis, 0)]
    return np.moveaxis(np.stack(each), 0, axis)


def _smallest(dataset: xr.Dataset, name: str) -> float:
    """Of the run's own corrected p-values; NaN where there is none."""
    if estimate.get(dataset, name).p is None:
        return np.nan
    p, dims = within(dataset, name), dataset[name].dims
    own = np.atleast_1d(p.take(0, axis=dims.index("run")) if "run" in dims else p)
    return float(np.min(own[np.isfinite(own)], initial=np.inf))
