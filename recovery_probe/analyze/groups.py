"""What an analysis is: a question put to a run, with what its answer would be if there were
nothing to see, and what it cannot see. And what all analyses share: which runs belong together,
how the numbers of several seeds become one, groups of modules."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from recovery_probe import config, stats
from recovery_probe.config import EXECUTION
from recovery_probe.errors import InputError, Missing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe.run import Run

# Settings in which a run and its control may differ.
FREE = ("schedule.kind", "schedule.keep_first", "control", *EXECUTION)
# What makes a number of a dataset an estimate: companions with these suffixes.
LOW, HIGH, P = "_low", "_high", "_p"
N = "_n"  # how many seeds have a value, where not all do


@dataclass(frozen=True)
class Analysis:
    """A plug-in: one file, one instance named `ANALYSIS`.

    A number `x` of its dataset is an *estimate* when there are `x_low` and `x_high`, its 95%
    interval, or `x_p`, the p-value of its null. Estimates are what the report tabulates, and what
    gets a mean, a spread and an interval over seeds (`across`).
    """

    name: str
    question: str
    null: str  # what it would show if there were no effect
    blind_spot: str  # what it cannot tell apart
    # compute(run, *, controls=(), **options) -> numbers, with dimensions, units and how made
    compute: Callable[..., xr.Dataset]
    # plot(dataset) -> figure; computes nothing
    plot: Callable[[xr.Dataset], Figure]
    # summary(dataset) -> what JSON can hold; `verdict`, if there, is a sentence for the report
    summary: Callable[[xr.Dataset], dict[str, Any]]
    # compute takes from_checkpoint=True: it then runs the model again, which takes torch and time
    from_checkpoint: bool = False
    # needs no run: a simulation, done when it is named and not otherwise
    stand_alone: bool = False


def check_controls(run: Run, controls: Sequence[Run]) -> None:
    """Raise `InputError` unless every control differs from the run in its schedule, and in that
    alone."""
    for control in controls:
        differing = _differing(run, control, FREE)
        if differing:
            told = ", ".join(f"{name} ({a!r}, {b!r})" for name, (a, b) in differing.items())
            raise InputError(
                f"{control.path}: not a control of {run.path}; beside the schedule they differ "
                f"in {told}"
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


def _differing(run: Run, other: Run, free: Sequence[str]) -> dict[str, Any]:
    """Setting -> its two values, wherever two runs differ in what decides their training; `hooks`
    that edit too, which stand in no settings."""
    edits = run.edits, other.edits
    return {
        name: pair
        for name, pair in config.differences(run.config, other.config).items()
        if name.partition(".")[0] not in config.WATCHING and name not in free
    } | ({"hooks": edits} if edits[0] != edits[1] else {})


def check_unedited(run: Run) -> None:
    """Raise `Missing` for a run that hooks edited: run again from a checkpoint, without them, its
    network is another one."""
    if run.edits:
        raise Missing(
            f"{run.path}: was trained with {', '.join(run.edits)}: without these edits its model, "
            "run again, is another network"
        )


def seeds_and_controls(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The first run and those that differ from it in the seed alone; and the others, which are
    to be controls. A run with a seed that is there already is a control too."""
    seeds: list[Run] = []
    controls: list[Run] = []
    for run in runs:
        same = not seeds or not _differing(seeds[0], run, ("seed", *EXECUTION))
        new = run.config.seed not in [s.config.seed for s in seeds]
        (seeds if same and new else controls).append(run)
    return seeds, controls


def match(runs: Sequence[Run], controls: Sequence[Run]) -> list[tuple[Run, list[Run]]]:
    """Each run with its controls, those of its seed, in one order of schedules for all. Raises
    `InputError` for a control that belongs to none, and when some of several runs have fewer
    controls than others, or of other schedules."""
    for run in runs[1:]:
        differing = _differing(runs[0], run, ("seed", *EXECUTION))
        if differing:
            raise InputError(
                f"{run.path}: not another seed of {runs[0].path}; they differ in "
                f"{', '.join(differing)}"
            )
    by_seed: dict[int, tuple[Run, list[Run]]] = {run.config.seed: (run, []) for run in runs}
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
        told = ", ".join(f"{run.path} ({len(own)})" for run, own in by_seed.values())
        raise InputError(f"every seed needs as many controls as the others: {told}")
    groups = [(run, sorted(own, key=_schedule)) for run, own in by_seed.values()]
    for run, own in groups:
        if list(map(_schedule, own)) != list(map(_schedule, groups[0][1])):
            raise InputError(
                f"every seed needs controls of the same schedules as the others: those of "
                f"{run.path} are {_schedules(own)}, those of {groups[0][0].path} "
                f"{_schedules(groups[0][1])}"
            )
    return groups


def _schedule(run: Run) -> tuple[str, bool]:
    return run.config.schedule.kind, run.config.schedule.keep_first


def _schedules(runs: Sequence[Run]) -> str:
    return ", ".join(f"{kind} (keep_first {first})" for kind, first in map(_schedule, runs))


def common(runs: Sequence[Run]) -> tuple[int, dict[str, str]]:
    """Episodes that all of a run and its controls have done; and, where one has done more, the
    attribute `compared` of a dataset that stops there."""
    shortest = min(runs, key=lambda run: run.episodes_done)
    done = shortest.episodes_done
    if all(run.episodes_done == done for run in runs):
        return done, {}
    told = f"The runs are compared as far as {shortest.path} has got: {done} episodes."
    return done, {"compared": told}


def compared(dataset: xr.Dataset) -> str:
    """What a verdict says first when a run has done more than is looked at; empty otherwise."""
    return f"{dataset.attrs['compared']} " if "compared" in dataset.attrs else ""


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
    out = first[[]].assign_coords(first.coords)
    for name in map(str, first.data_vars):
        stack = np.stack([d[name].values for d in datasets])
        dims, attrs = first[name].dims, first[name].attrs
        base, _, suffix = name.rpartition("_")
        if suffix in ("low", "high") and base in first:
            continue
        if attrs.get("of_seeds") == "the first":
            out[name] = (dims, stack[0], attrs)
        elif attrs.get("of_seeds") == "sum":
            out[name] = (dims, stack.sum(axis=0), attrs)
        elif attrs.get("of_seeds") == "each":
            out[name] = (("seed", *dims), stack, attrs)
        elif suffix == "p" and base in first:
            out[name] = (dims, stats.fisher(stack), attrs | {"combined": "Fisher, over seeds"})
        elif stack.dtype.kind != "f":
            same = all(np.array_equal(stack[0], other) for other in stack)
            out[name] = (dims, stack[0], attrs) if same else (("seed", *dims), stack, attrs)
        else:
            out[name] = (dims, stats.mean_of_counted(stack, axis=0), attrs)
            if is_estimate(first, name):
                low, high = stats.t_interval(stack)
                out[name + "_sd"] = (dims, stats.sd_of_counted(stack), {"over": "seeds"})
                out[name + LOW], out[name + HIGH] = (dims, low), (dims, high)
                out[name + "_each"] = (("seed", *dims), stack)
                if not np.isfinite(stack).all():
                    out[name + N] = (dims, np.isfinite(stack).sum(axis=0), {"units": "seeds"})
    fewer = any(str(name).endswith(N) and str(name)[: -len(N)] in out for name in out.data_vars)
    out.attrs = first.attrs | {
        "unit": f"{len(datasets)} seeds",
        "interval": f"95% t interval over {len(datasets)} seeds"
        + (", fewer where a seed has no value: see the names that end in _n" if fewer else ""),
    }
    return out


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


def is_estimate(dataset: xr.Dataset, name: str) -> bool:
    """Whether a variable has an interval or a p-value."""
    return name + LOW in dataset or name + P in dataset


def estimates(dataset: xr.Dataset) -> dict[str, list[dict[str, Any]]]:
    """Name of each estimate -> its values, one record for each point of its coordinates: these,
    `value`, and where there are any `low`, `high`, `sd` (over seeds), `p` and `n` (seeds that have
    a value, where not all do); null for NaN."""
    return {
        str(name): [_record(dataset, str(name), at) for at in points(dataset[name])]
        for name in dataset.data_vars
        if is_estimate(dataset, str(name))
    }


def points(array: xr.DataArray) -> list[dict[Hashable, int]]:
    """Every index of an array, by dimension."""
    ranges = [range(n) for n in array.shape]
    return [dict(zip(array.dims, at, strict=True)) for at in product(*ranges)]


def _record(dataset: xr.Dataset, name: str, at: dict[Hashable, int]) -> dict[str, Any]:
    record: dict[str, Any] = {str(d): coordinate(dataset, d, i) for d, i in at.items()}
    record["value"] = number(dataset[name].isel(at))
    for suffix in (LOW, HIGH, "_sd", P, N):
        if name + suffix in dataset:
            record[suffix[1:]] = number(dataset[name + suffix].isel(at))
    return record


def coordinate(dataset: xr.Dataset, dimension: Hashable, index: int) -> str | int | float:
    """The label of an index, as JSON can hold it."""
    if dimension not in dataset.coords:
        return index
    value = dataset[dimension].values[index]
    return value.item() if isinstance(value, np.generic) else value


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


def module_groups(modules: xr.DataArray, blocks: bool = False) -> dict[str, NDArray[np.bool_]]:
    """Name -> which entries of a `module` dimension: `total`, the kinds that are there among
    `embedding`, `attention`, `mlp`, `norms` and `unembedding`, and with `blocks` each block."""
    kind = modules["kind"].values.astype(str)
    block = modules["block"].values.astype(int)
    norms = np.char.startswith(np.array([k.rpartition(".")[2] for k in kind]), "ln") | (
        np.char.find(kind, "norm") >= 0
    )
    members = {
        "total": np.ones(len(kind), dtype=bool),
        "embedding": np.isin(kind, ["embed", "pos_embed"]),
        "attention": np.char.startswith(kind, "attn") & ~norms,
        "mlp": np.char.startswith(kind, "mlp") & ~norms,
        "norms": norms,
        "unembedding": kind == "unembed",
    }
    if blocks:
        members |= {f"block {b}": block == b for b in np.unique(block[block >= 0]).tolist()}
    return {name: which for name, which in members.items() if which.any()}


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


def against_zero(value: float, low: float, high: float, more: str, less: str, none: str) -> str:
    """Which of three a verdict says of an estimate and its interval; that it cannot say any when
    one of them is not defined."""
    if np.isnan(value):
        return "nothing can be said"
    if np.isnan(low) or np.isnan(high):
        return "nothing can be said without an interval"
    return more if low > 0 else less if high < 0 else none


def unit(dataset: xr.Dataset) -> str:
    """What the intervals are over, as the verdicts say it."""
    told = str(dataset.attrs.get("unit", "documents"))
    return f"these {told}"


def with_test(value: float, p: float, form: str = ".2f", undefined: str = "") -> str:
    """`0.42 (p = 0.02)`, or that it is not defined, and why, as `undefined` says."""
    if np.isnan(value):
        return "not defined" + (f" ({undefined})" if undefined else "")
    return f"{value:{form}} ({with_p(p)})"


def with_p(p: float) -> str:
    """`p = 0.02`."""
    return "p not defined" if np.isnan(p) else f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
