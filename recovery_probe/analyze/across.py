"""The datasets of several seeds, made one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import xarray as xr

from recovery_probe import stats
from recovery_probe.analyze import estimate
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.multiplicity import holm_by_run
from recovery_probe.errors import InputError

# What a variance component is called beside its estimate, and what it means.
COMPONENTS = {
    "seed": ("seed_variance", "variance between seeds, documents aside"),
    "document": ("document_variance", "variance between documents, seeds aside"),
    "effective": (
        "effective_documents",
        "how many independent documents the mean of one seed is worth",
    ),
}


def across(datasets: Sequence[xr.Dataset], left_out: Sequence[str] = ()) -> xr.Dataset:
    """One dataset from those that an analysis made of several seeds; `left_out` names further
    seeds that it could not be done of, and why.

    Estimates become their mean, with `_sd`, as `_low` and `_high` a 95% t interval over seeds, as
    `_low90` and `_high90` one of 90%, as `_n` how many seeds have a value, as `_detectable` the
    mean that so many would find in 80% of cases, and each seed's value as `_each` (seed, …). Where
    an estimate has a p-value or the mean of a null, `_p` is that of a t test over seeds of value
    minus null (0 where none is given): two-sided, unless its attribute `alternative` says
    otherwise; `_p_adjusted` is it corrected, by Holm's method, for the other places of the estimate
    in the same run. Where its attribute `mean_of` names values by document, the variances of seeds
    and documents stand beside it.

    Other numbers are averaged; what is not a real number is kept by seed where it differs. An
    attribute `of_seeds` says otherwise: `sum` of counts, `each` of what is kept by seed in any
    case, `the first` of coordinates that mean nothing from seed to seed.

    The attribute `seeds` names those that count, `seeds_left_out` those that do not, or not
    everywhere. A seed that got less far than most is left out. Raises `InputError` when the
    datasets differ otherwise in variables, shapes or coordinates.
    """
    if len(datasets) == 1 and not left_out:
        return datasets[0]
    named = [_name(dataset, seed) for seed, dataset in enumerate(datasets)]
    unfinished = [text for d in datasets for text in d.attrs.get("unfinished", [])]
    datasets, named, short = _as_far(datasets, named)
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
            if "mean_of" in attrs:
                _put_components(out, datasets, name)
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
    count = len(datasets)
    out.attrs = first.attrs | {
        "unit": f"{count} seeds",
        "interval": f"95% t interval over {count} seeds, fewer where _n says so",
        "seeds": named,
        "seeds_left_out": [*left_out, *short, *unfinished, *_without_a_value(out, named)],
    }
    out.attrs.pop("unfinished", None)
    for name in {"runs", "controls"} & set(first.attrs):
        out.attrs[name] = [path for d in datasets for path in d.attrs[name]]
    if not _crossed(datasets):
        out.attrs.pop("documents_digest", None)
    if any(estimate.get(out, name).p is not None for name in estimates):
        out.attrs["p"] = f"t test over {count} seeds of value minus null"
    return out


def _name(dataset: xr.Dataset, seed: int) -> str:
    return dataset.attrs["runs"][0] if "runs" in dataset.attrs else f"seed {seed}"


def _as_far(
    datasets: Sequence[xr.Dataset], named: list[str]
) -> tuple[list[xr.Dataset], list[str], list[str]]:
    """The datasets of the shape that most have, and of those the longest, with their names; and
    of the others, why they are left out. All of them where no two agree."""
    shapes = [tuple(sorted((str(d), n) for d, n in each.sizes.items())) for each in datasets]
    counts = Counter(shapes)
    most = max(counts, key=lambda shape: (counts[shape], sum(n for _, n in shape)))
    if counts[most] < 2:
        return list(datasets), named, []
    kept = [i for i, shape in enumerate(shapes) if shape == most]
    short = [
        f"{named[i]}: has "
        + ", ".join(f"{n} of {dict(most).get(d, 0)} {d}" for d, n in shape if (d, n) not in most)
        for i, shape in enumerate(shapes)
        if shape != most
    ]
    return [datasets[i] for i in kept], [named[i] for i in kept], short


def _of_seeds(datasets: Sequence[xr.Dataset], name: str, values: stats.Floats) -> Estimate:
    """Of (seed, …) values, with what each seed's null expects of them."""
    each = [estimate.get(dataset, name) for dataset in datasets]
    alternative = datasets[0][name].attrs.get("alternative", "two-sided")
    null = None if each[0].null is None else np.stack([e.null for e in each])
    twin = None if each[0].twin is None else np.stack([e.twin for e in each])
    n, sd = np.isfinite(values).sum(axis=0), stats.sd_of_counted(values)
    low, high = stats.t_interval(values)
    low90, high90 = stats.t_interval(values, 0.9)
    p = None
    if null is not None or each[0].p is not None:
        p = stats.t_p(values - (0 if null is None else null), alternative)
    sizes = {int(count): stats.detectable(int(count)) for count in np.unique(n)}
    return Estimate(
        stats.mean_of_counted(values, axis=0),
        low,
        high,
        p=p,
        null=None if null is None else stats.mean_of_counted(null, axis=0),
        p_adjusted=None if p is None else holm_by_run(p, datasets[0][name].dims),
        n=n,
        sd=sd,
        low90=low90,
        high90=high90,
        detectable=sd * np.vectorize(sizes.get, otypes=[float])(n),
        each=values,
        null_each=null,
        twin=None if twin is None else stats.mean_of_counted(twin, axis=0),
    )


def _put_components(out: xr.Dataset, datasets: Sequence[xr.Dataset], name: str) -> None:
    """Variances of seeds and of documents (`stats.variance_components`), from the values by
    document whose mean the estimate is."""
    of = datasets[0][name].attrs["mean_of"]
    arrays = [dataset[of].transpose(..., "document") for dataset in datasets]
    values = np.stack([array.values for array in arrays], axis=-2)  # (…, seed, document)
    crossed = _crossed(datasets)
    places = list(np.ndindex(values.shape[:-2]))
    found = [stats.variance_components(values[place], crossed) for place in places]
    documents = "the same documents" if crossed else "documents of its own"
    for component, (words, meaning) in COMPONENTS.items():
        array = np.reshape([each[component] for each in found], values.shape[:-2])
        attrs = {"meaning": f"{meaning}; every seed has {documents}"}
        out[f"{name}_{words}"] = (arrays[0].dims[:-1], array, attrs)


def _crossed(datasets: Sequence[xr.Dataset]) -> bool:
    """Whether all seeds have the same documents, in one order."""
    digests = {dataset.attrs.get("documents_digest") for dataset in datasets}
    return len(digests) == 1 and None not in digests


def _without_a_value(out: xr.Dataset, named: Sequence[str]) -> list[str]:
    """Of each seed, the estimates that it has no value of where another has one."""
    lacking: list[list[str]] = [[] for _ in named]
    for name in estimate.names(out):
        found = np.isfinite(out[f"{name}_each"].values).reshape(len(named), -1)
        for seed, row in enumerate(found):
            if (found.any(axis=0) & ~row).any():
                lacking[seed].append(name)
    return [
        f"{seed}: no value, somewhere, of {', '.join(names)}"
        for seed, names in zip(named, lacking, strict=True)
        if names
    ]


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
