"""The runs of a sweep side by side: a dataset with the axes as dimensions, a table, and how each
quantity goes along each axis, beside what was published."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from recovery_probe import stats
from recovery_probe.analyze import ages
from recovery_probe.errors import Missing
from recovery_probe.record.folder import is_run
from recovery_probe.record.run import Run, open_run
from recovery_probe.sweep.spec import Axis, Job, Paper, Sweep

NATS, SHARE = "nats per token", "share of forgotten loss"
# Quantity -> its dimension, units, and what it is.
OF_RUN = {
    "recovery": (SHARE, "recovery score of the averaged curve; of a control at equal age"),
    "crossfitted": (SHARE, "the same, cross-fitted, which noise does not raise"),
    "online": (NATS, "loss of the document about to be trained on, from its second episode on"),
}
OF_PAIR = {
    "above_control": (SHARE, "recovery minus that of the control"),
    "gain": (NATS, "gain on arrival: better off than in the control, at equal age and time"),
    "excess": (NATS, "excess in mid-wait: worse off than in the control"),
    "matched_fall": (NATS, "by how much more the loss falls until arrival than in the control"),
}
DRAWN = ("recovery", "gain", "online")
CALLED = {"up": "grows", "down": "falls", "none": "hardly changes"}


def numbers(spec: Sweep, jobs: Sequence[Job]) -> xr.Dataset:
    """Each of `OF_RUN` (axes …, seed, run) and `OF_PAIR` (axes …, seed, control), NaN where a run
    is not complete or has no such number; `parameters`, `seconds` and `status` (axes …, seed,
    run); `epoch` (axes …, seed), the wait that they are of."""
    dims = spec.dims
    names = [_label(point.path.name, job.plan) for job in jobs[:1] for point in job.plan]
    shape = tuple(len(labels) for labels in dims.values())
    of_run: dict[str, Any] = {
        name: np.full((*shape, len(names)), np.nan) for name in (*OF_RUN, "parameters", "seconds")
    }
    of_pair = {name: np.full((*shape, len(names) - 1), np.nan) for name in OF_PAIR}
    status = np.full((*shape, len(names)), "planned", dtype=object)
    epochs = np.zeros(shape, dtype=np.int64)
    for job in (job for job in jobs if job.point.role == "run"):
        runs = [open_run(p.path) if is_run(p.path) else None for p in job.plan]
        for r, run in enumerate(runs):
            if run is not None:
                status[(*job.place, r)] = run.status
                of_run["parameters"][(*job.place, r)] = run.provenance.get("parameters", np.nan)
                of_run["seconds"][(*job.place, r)] = run.provenance.get("seconds", np.nan)
        whole = [run if run is not None and run.status == "complete" else None for run in runs]
        found, epoch = _of_runs(whole, spec.epoch)
        epochs[job.place] = epoch
        for name, value in found.items():
            (of_run if name in OF_RUN else of_pair)[name][job.place] = value
    data: dict[str, Any] = {"epoch": (tuple(dims), epochs), "status": ((*dims, "run"), status)}
    for name, values in of_run.items():
        units, about = OF_RUN.get(name, ("s" if name == "seconds" else "1", name))
        data[name] = ((*dims, "run"), values, {"units": units, "long_name": about})
    for name, values in of_pair.items():
        units, about = OF_PAIR[name]
        data[name] = ((*dims, "control"), values, {"units": units, "long_name": about})
    coords: dict[str, Any] = {n: list(labels) for n, labels in dims.items()}
    coords |= {"run": names, "control": names[1:]}
    return xr.Dataset(data, coords, {"sweep": spec.name, "about": spec.about})


def _label(name: str, plan: Sequence[Any]) -> str:
    return name if len(plan) > 1 else "run"


def _of_runs(runs: Sequence[Run | None], epoch: int) -> tuple[dict[str, Any], int]:
    """Every quantity of a run and its controls, and the wait that it is of. Without the run
    nothing is known but the others' online loss."""
    count = len(runs)
    found = {name: np.full(count, np.nan) for name in OF_RUN}
    found |= {name: np.full(count - 1, np.nan) for name in OF_PAIR}
    for r, each in enumerate(runs):
        if each is not None:
            found["online"][r] = later_online(each)
    run = runs[0]
    if run is None:
        return found, 0
    there = [r for r, each in enumerate(runs) if each is not None]
    together = [each for each in runs if each is not None]
    try:
        dataset = ages.numbers(*together)
    except Missing:  # no document has come back
        return found, 0
    epoch = epoch or ages.last_epoch(dataset)
    if epoch not in dataset.epoch.values:
        return found, epoch
    at = dataset.sel(epoch=epoch)
    for name, reading in (("recovery", "curve"), ("crossfitted", "crossfitted")):
        found[name][there] = at.score.sel(reading=reading).values
    for name in ages.PARTS:
        found[name][np.array(there[1:], dtype=int) - 1] = at[name].values
    found["above_control"] = found["recovery"][0] - found["recovery"][1:]
    return found, epoch


def later_online(run: Run) -> float:
    """The mean loss, nats, before the first step of every episode but the first on its document
    (paper, table 1: of epochs 2 to E). NaN when no document came twice."""
    documents = run.schedule.values[: run.episodes_done]
    first = run.train_loss.values[:: run.config.steps][: run.episodes_done]
    again = np.ones(len(documents), dtype=bool)
    again[np.unique(documents, return_index=True)[1]] = False
    return float(first[again].mean()) if again.any() else float("nan")


def as_csv(dataset: xr.Dataset) -> str:
    """A row for each point and seed, a column for each quantity, those of controls by their
    names."""
    dims = [str(d) for d in dataset.epoch.dims]
    file = io.StringIO()
    table = csv.writer(file)
    columns = {
        (f"{name}_{label}" if i or dim == "control" else name): dataset[name].isel({dim: i})
        for names, dim in (
            (("status", "parameters", "seconds", *OF_RUN), "run"),
            (OF_PAIR, "control"),
        )
        for name in names
        for i, label in enumerate(dataset[dim].values)
    }
    table.writerow([*dims, "epoch", *columns])
    for place in np.ndindex(dataset.epoch.shape):
        labels = [dataset[d].values[i] for d, i in zip(dims, place, strict=True)]
        cells = [_cell(array.values[place]) for array in columns.values()]
        table.writerow([*labels, int(dataset.epoch.values[place]), *cells])
    return file.getvalue()


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) and np.isfinite(value) else str(value)


@dataclass(frozen=True)
class Verdict:
    """Whether a quantity goes along an axis as was published."""

    axis: str
    quantity: str
    text: str


def trend(blocks: stats.Floats) -> tuple[float, float, int]:
    """p that (block, level) values grow along the levels, p that they fall, and of how many blocks:
    those that have all values. Page's test, exact where that is feasible: it orders the levels
    within each block, and asks nothing of their sizes. Of two levels, a t test of the
    differences. NaN with fewer than two blocks."""
    from scipy.stats import page_trend_test

    whole = blocks[np.isfinite(blocks).all(axis=1)]
    if len(whole) < 2 or blocks.shape[1] < 2:
        return float("nan"), float("nan"), len(whole)
    if blocks.shape[1] == 2:
        difference = whole[:, 1] - whole[:, 0]
        up, down = (stats.t_p(difference, side) for side in ("greater", "less"))
        return float(up), float(down), len(whole)
    up, down = (page_trend_test(sign * whole).pvalue for sign in (1, -1))
    return float(up), float(down), len(whole)


def along(dataset: xr.Dataset, name: str, axis: Axis, side: int = 0) -> stats.Floats:
    """(block, level): a quantity along an axis; a block is a seed, at each point of the other
    axes."""
    array = dataset[name]
    array = array.isel({str(array.dims[-1]): side})
    others = [d for d in array.dims if d != axis.name]
    return np.asarray(array.transpose(*others, axis.name).values.reshape(-1, len(axis.at)))


def directions(dataset: xr.Dataset, spec: Sweep, axis: Axis) -> list[Verdict]:
    """How recovery, gain and online loss go along an axis, and whether as published."""
    made = []
    for name in DRAWN:
        if name in OF_PAIR and not dataset.sizes["control"]:
            continue
        up, down, blocks = trend(along(dataset, name, axis))
        published = next(
            (p for p in spec.paper if p.axis == axis.name and p.quantity == name and p.direction),
            None,
        )
        made.append(Verdict(axis.name, name, _verdict(name, axis, up, down, blocks, published)))
    return made


def _verdict(
    name: str, axis: Axis, up: float, down: float, blocks: int, published: Paper | None
) -> str:
    if np.isnan(up):
        text = f"{name} along {axis.name}: no test, of {blocks} whole series"
        seen = None
    else:
        seen = "up" if up < 0.05 else "down" if down < 0.05 else None
        word = f"{CALLED[seen]}" if seen else "neither grows nor falls, as far as can be told,"
        kind = "t test" if len(axis.at) == 2 else "Page's test"
        text = (
            f"{name} {word} along {axis.name} ({', '.join(map(str, axis.at))}): {kind} over "
            f"{blocks} series, p = {up:.2g} that it grows, {down:.2g} that it falls"
        )
    if published is None or published.direction is None:
        return f"{text}."
    expected = CALLED[published.direction]
    if seen is None:
        agrees = "cannot be told" if published.direction != "none" else "agrees, or too few seeds"
    else:
        agrees = "agrees" if seen == published.direction else "disagrees"
    return f"{text}. Paper ({published.source}): it {expected}: {agrees}."
