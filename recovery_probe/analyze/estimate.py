"""Estimates: a number with its interval or its p-value, in memory and in a dataset.

In a dataset the parts of `score` are variables of their own: `score` holds the value, `score_low`,
`score_high`, `score_p`, … the rest. Which variables are parts of which, attributes say and no name:
`ancillary_variables` of `score` lists them, as in the CF conventions, and `part` of each says which
it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

import numpy as np
import xarray as xr

from recovery_probe import stats
from recovery_probe.analyze.words import number, with_p


@dataclass(frozen=True)
class Estimate:
    """A number, or an array of them, and what stands beside it, each of the same shape."""

    value: Any
    # its 95% interval
    low: Any = None
    high: Any = None
    _: KW_ONLY
    # over several seeds: their standard deviation
    sd: Any = None
    # the p-value of its null
    p: Any = None
    # the mean of its null
    null: Any = None
    # the p-value, corrected for how many were tested at once
    p_adjusted: Any = None
    # how many seeds have a value, where not all do
    n: Any = None
    # each seed's value, (seed, …)
    each: Any = None
    # what the interval is over
    over: str = "documents"

    @property
    def parts(self) -> dict[str, Any]:
        """All that is there of low, high, sd, p, n and each."""
        given = {part: getattr(self, part) for part in PARTS}
        return {part: values for part, values in given.items() if values is not None}

    def __getitem__(self, index: Any) -> Estimate:
        """The same of a place in the arrays; numbers where it is one."""

        def taken(part: str, values: Any) -> Any:
            places = (slice(None), *np.atleast_1d(index)) if part == "each" else index
            found = values[places]
            return found.item() if np.ndim(found) == 0 else found

        parts = {part: taken(part, values) for part, values in self.parts.items()}
        return Estimate(taken("value", self.value), **parts, over=self.over)

    def __str__(self) -> str:
        """`0.42 [0.37, 0.48]`, or what is missing in words."""
        if np.isnan(self.value):
            return "not defined"
        missing = self.low is None or np.isnan(self.low)
        bounds = "interval not defined" if missing else f"{self.low:.2f}, {self.high:.2f}"
        return f"{self.value:.2f} [{bounds}]"

    def with_test(self, form: str = ".2f", undefined: str = "") -> str:
        """`0.42 (p = 0.02)`, or that it is not defined, and why, as `undefined` says."""
        if np.isnan(self.value):
            return "not defined" + (f" ({undefined})" if undefined else "")
        return f"{self.value:{form}} ({with_p(self.p)})"

    def against_zero(self, more: str, less: str, none: str) -> str:
        """Which of three a verdict says of the value and its interval; that it cannot say any when
        one of them is not defined."""
        if np.isnan(self.value):
            return "nothing can be said"
        if self.low is None or np.isnan(self.low) or np.isnan(self.high):
            return "nothing can be said without an interval"
        return more if self.low > 0 else less if self.high < 0 else none

    @property
    def of_seeds(self) -> bool:
        """Whether it is over several seeds; one run's documents share a trajectory, and no verdict
        comes of their interval."""
        return self.over.endswith("seeds")

    def told(self, more: str, less: str, none: str) -> str:
        """What a verdict says of it: of several seeds as `against_zero` has it, of one run what the
        interval is."""
        if not self.of_seeds:
            return f"brackets are the spread over {self.over} of one run"
        return self.against_zero(more, less, none)

    @property
    def caveat(self) -> str:
        """What a verdict adds to a difference that it calls one."""
        return f"as far as these {self.over} tell"

    @property
    def cell(self) -> str:
        """`0.42 [0.37, 0.48], p = 0.02`, of three digits: a cell of a table."""
        if np.isnan(self.value):
            return "–"
        text = f"{self.value:.3g}"
        if self.low is not None and not np.isnan(self.low):
            text += f" [{self.low:.3g}, {self.high:.3g}]"
        return text + (f", {with_p(self.p)}" if self.p is not None else "")


PARTS = tuple(f.name for f in fields(Estimate) if f.name not in ("value", "over"))


def of_mean(each: stats.Floats, rng: np.random.Generator, resamples: int = 2000) -> Estimate:
    """The mean over documents, the first axis, leaving NaN out, with a studentised bootstrap over
    them."""
    return Estimate(*stats.studentised_interval(each, rng, resamples))


def stack(estimates: Sequence[Estimate]) -> Estimate:
    """One, with a first axis, of several that have the same parts."""
    parts = {part: np.stack([e.parts[part] for e in estimates]) for part in estimates[0].parts}
    return Estimate(np.stack([e.value for e in estimates]), **parts, over=estimates[0].over)


def put(
    dataset: xr.Dataset, name: str, dims: str | Sequence[Hashable], estimate: Estimate, **attrs: Any
) -> None:
    """Add an estimate to a dataset: its value as `name`, its parts beside it."""
    dims = (dims,) if isinstance(dims, str) else tuple(dims)
    dataset[name] = (dims, estimate.value, attrs)
    for part, values in estimate.parts.items():
        beside = ("seed", *dims) if part == "each" else dims
        dataset[f"{name}_{part}"] = (beside, values, {"part": part})
    names = " ".join(f"{name}_{part}" for part in estimate.parts)
    dataset[name].attrs["ancillary_variables"] = names


def get(dataset: xr.Dataset, name: str, **places: Any) -> Estimate:
    """An estimate of a dataset, at the labels `places`; a variable without parts is one too."""

    def values(variable: str) -> Any:
        array = dataset[variable]
        array = array.sel({d: place for d, place in places.items() if d in array.dims})
        array = array.transpose("seed", ..., missing_dims="ignore")
        return array.values if array.ndim else array.item()

    parts = {part: values(variable) for part, variable in companions(dataset, name).items()}
    return Estimate(values(name), **parts, over=dataset.attrs.get("unit", "documents"))


def companions(dataset: xr.Dataset, name: str) -> dict[str, str]:
    """Part -> variable, of the parts of a variable that are there."""
    beside = dataset[name].attrs.get("ancillary_variables", "").split()
    return {dataset[other].attrs["part"]: other for other in beside if other in dataset}


def names(dataset: xr.Dataset) -> list[str]:
    """The estimates of a dataset: variables with an interval or a p-value."""
    known = map(str, dataset.data_vars)
    return [name for name in known if {"low", "p"} & set(companions(dataset, name))]


def records(dataset: xr.Dataset) -> dict[str, list[dict[str, Any]]]:
    """Name of each estimate -> its values, one record for each point of its coordinates: these,
    `value`, and what there is of `low`, `high`, `sd` (over seeds), `p` and `n` (seeds that have a
    value, where not all do); null for NaN."""
    return {
        name: [
            {**where, "value": number(e.value)}
            | {part: number(value) for part, value in e.parts.items() if part != "each"}
            for where, e in points(dataset, name)
        ]
        for name in names(dataset)
    }


def points(dataset: xr.Dataset, name: str) -> Iterator[tuple[dict[str, Any], Estimate]]:
    """Of every place of an estimate: its labels by dimension, and the numbers there."""
    estimate, dims = get(dataset, name), dataset[name].dims
    for index in np.ndindex(dataset[name].shape):
        labels = {str(d): _label(dataset, d, i) for d, i in zip(dims, index, strict=True)}
        yield labels, estimate[index] if index else estimate


def _label(dataset: xr.Dataset, dimension: Hashable, index: int) -> str | int | float:
    """Of an index, as JSON can hold it."""
    if dimension not in dataset.coords:
        return index
    value = dataset[dimension].values[index]
    return value.item() if isinstance(value, np.generic) else value
