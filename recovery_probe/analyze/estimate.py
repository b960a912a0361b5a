"""Estimates: a number with its interval, its p-value or its null, in memory and in a dataset.

A p-value that can never be below .05, however clear the effect, is no test and is not given; the
null then stands alone beside the value, and several seeds are tested against it (`across`).

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
    # the p-value of its null
    p: Any = None
    # the mean of its null
    null: Any = None
    # the p-value, corrected for how many were tested at once
    p_adjusted: Any = None
    # over several seeds: how many have a value, and the standard deviation of these
    n: Any = None
    sd: Any = None
    # over several seeds: its 90% interval, which lies within a bound where two one-sided tests at
    # 5% call it no larger than that
    low90: Any = None
    high90: Any = None
    # over several seeds: the mean that so many would find in 80% of cases (two-sided, 5%)
    detectable: Any = None
    # each seed's value, and the mean of its null, (seed, …)
    each: Any = None
    null_each: Any = None
    # the same of the run's twin, which differs in a last digit: what rounding alone makes of it
    twin: Any = None
    # what the interval is over
    over: str = "documents"

    @property
    def parts(self) -> dict[str, Any]:
        """All that is there of low, high, p, … and twin."""
        given = {part: getattr(self, part) for part in PARTS}
        return {part: values for part, values in given.items() if values is not None}

    def __getitem__(self, index: Any) -> Estimate:
        """The same of a place in the arrays; numbers where it is one."""

        def taken(part: str, values: Any) -> Any:
            places = (slice(None), *np.atleast_1d(index)) if part in BY_SEED else index
            found = values[places]
            return found.item() if np.ndim(found) == 0 else found

        parts = {part: taken(part, values) for part, values in self.parts.items()}
        return Estimate(taken("value", self.value), **parts, over=self.over)

    def __str__(self) -> str:
        """`0.42 [0.37, 0.48]`, of seeds `0.42 [0.37, 0.48; 5 seeds]`; or what is missing."""
        if np.isnan(self.value):
            return "not defined"
        missing = self.low is None or np.isnan(self.low)
        bounds = "interval not defined" if missing else f"{two(self.low)}, {two(self.high)}"
        return f"{two(self.value)} [{bounds}{'; ' if self._seeds else ''}{self._seeds}]"

    def with_test(self, form: str = ".2f", undefined: str = "") -> str:
        """`0.42 (0.10 under the null, p = 0.02, corrected p = 0.06, 5 seeds)`, what there is of
        these; or that it is not defined, and why, as `undefined` says."""
        if np.isnan(self.value):
            return "not defined" + (f" ({undefined})" if undefined else "")
        null = "" if _none(self.null) else f"{self.null:{form}} under the null"
        beside = ", ".join(text for text in (null, self._tested, self._seeds) if text)
        return f"{self.value:{form}}" + (f" ({beside})" if beside else "")

    @property
    def _tested(self) -> str:
        """`p = 0.02, corrected p = 0.06`, what there is of the two."""
        if self.p is None:
            return ""
        corrected = "" if _none(self.p_adjusted) else f", corrected {with_p(self.p_adjusted)}"
        return with_p(self.p) + corrected

    @property
    def _seeds(self) -> str:
        """`5 seeds`, of those that have a value; nothing of one run."""
        return "" if self.n is None else f"{self.n} seed{'s' if self.n != 1 else ''}"

    def decided(self, more: str, less: str, bound: float, units: str = "") -> str:
        """What can be said of a difference, whose null is 0, in the words for a positive and a
        negative one. Of one run nothing can. Of several seeds by the interval, and by two one-sided
        tests against ±`bound`, the smallest that matters: it differs, it is equal within the
        bound, both (it differs by less than matters), or neither."""
        if np.isnan(self.value):
            return "nothing can be said"
        if self.n is None:
            spread = "" if self.over == "one run" else f"spread over {self.over}; "
            return spread + "one run decides nothing"
        if self.low is None or np.isnan(self.low):
            return "nothing can be said without an interval"
        differs = {1: more, -1: less}.get(self.sign, "")
        most = f"{bound:g}{units and ' '}{units}"
        if self._within(bound):
            return f"{differs}, yet by less than {most}" if differs else f"equal within ±{most}"
        finds = f"{self.n} such seeds find one of {self.detectable:.2g} in 80% of cases"
        return differs or f"undecided: neither different nor equal within ±{most} ({finds})"

    @property
    def sign(self) -> int:
        """1 or -1 where the interval over several seeds lies on that side of 0; else 0, and of one
        run, which decides nothing."""
        several = self.n is not None and self.low is not None
        return int(self.low > 0) - int(self.high < 0) if several else 0

    def _within(self, bound: float) -> bool:
        """Whether two one-sided tests over seeds call it no larger than ±`bound`."""
        return bool(self.low90 is not None and -bound < self.low90 and self.high90 < bound)

    def agrees(self, sign: int, bound: float) -> bool | None:
        """Whether several seeds agree with a finding that it is above 0 (`sign` 1) or below (-1):
        not where it is on the other side, or equal to 0 within ±`bound`. None where that cannot be
        told, as of one run."""
        if self._within(bound):
            return None if self.sign == sign else False
        return self.sign == sign if self.sign else None

    @property
    def cell(self) -> str:
        """`0.42 [0.37, 0.48], null 0.1, p = 0.02, corrected p = 0.06, 5 seeds`, of three digits,
        what there is of these: a cell of a table."""
        if np.isnan(self.value):
            return "–"
        text = f"{self.value:.3g}"
        if not _none(self.low):
            text += f" [{self.low:.3g}, {self.high:.3g}]"
        null = "" if _none(self.null) else f"null {self.null:.3g}"
        return ", ".join(part for part in (text, null, self._tested, self._seeds) if part)


def two(number: Any) -> str:
    """With two decimals, and no minus before nothing."""
    return f"{round(float(number), 2) + 0:.2f}"


def _none(value: Any) -> bool:
    return value is None or bool(np.isnan(value))


# The parts with a first axis of seeds.
BY_SEED = ("each", "null_each")
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
        beside = ("seed", *dims) if part in BY_SEED else dims
        dataset[f"{name}_{part}"] = (beside, values, {"part": part})
    names = " ".join(f"{name}_{part}" for part in estimate.parts)
    dataset[name].attrs["ancillary_variables"] = names


def add(dataset: xr.Dataset, name: str, part: str, values: Any) -> None:
    """Add a part to an estimate that is there, of its shape."""
    dataset[f"{name}_{part}"] = (dataset[name].dims, values, {"part": part})
    attrs = dataset[name].attrs
    attrs["ancillary_variables"] = f"{attrs.get('ancillary_variables', '')} {name}_{part}".strip()


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
    """The estimates of a dataset: variables with an interval, a p-value or a null."""
    known = map(str, dataset.data_vars)
    return [name for name in known if {"low", "p", "null"} & set(companions(dataset, name))]


def records(dataset: xr.Dataset) -> dict[str, list[dict[str, Any]]]:
    """Name of each estimate -> its values, one record for each point of its coordinates: these,
    `value`, and what there is of its parts but those by seed; null for NaN."""
    return {
        name: [
            {**where, "value": number(e.value)}
            | {part: number(value) for part, value in e.parts.items() if part not in BY_SEED}
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
