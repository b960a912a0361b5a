"""Cosine between weight residuals of all pairs of episodes, by group of modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray
from recovery_probe.analysis import (
    Analysis,
    common,
    compared,
    estimates,
    labels,
    module_groups,
    with_test,
)

from recovery_probe import plots, stats
from recovery_probe.errors import Missing
from recovery_probe.record.run import Run
from recovery_probe.seeds import generator


def compute(run: Run, *, controls: Sequence[Run] = (), permutations: int = 199) -> xr.Dataset:
    """Residual: the weights after an episode, minus their mean over one cycle centred on it
    (paper, figure 8c), from the recorded sketches.

    Returns cosine (run, group, episodes_done, other); by_lag (run, group, lag), its mean over
    pairs of episodes that far apart; stripe (run, group): mean cosine at lags T, 2T, … minus that
    at all other lags of more than T/2, with stripe_p, one-sided, of rotating each epoch's updates
    by an amount of its own, and stripe_low, stripe_high, a bootstrap over positions in the cycle.

    Raises `Missing` without `weight_deltas` of every episode, or before two epochs are done.
    """
    runs = [run, *controls]
    done, told = common(runs)
    dataset = xr.concat([_one(r, done, permutations) for r in runs], dim="run")
    dataset = dataset.assign_coords(run=labels(runs))
    dataset.attrs |= {
        "T": run.config.documents.count,
        "unit": "documents",
        "interval": "95% percentile bootstrap over positions in the cycle",
        "p": f"one-sided; {permutations} rotations within epochs",
        **told,
    }
    return dataset


def updates(run: Run, episodes: int) -> tuple[xr.DataArray, int]:
    """(episode, module, sketch): the update of every episode of the whole epochs among the first
    `episodes`, and how many epochs these are. Raises `Missing` where there are fewer than two."""
    trajectory = run.weight_trajectory()
    epochs = episodes // run.config.documents.count
    total = epochs * run.config.documents.count
    if not np.array_equal(trajectory.episodes_done.values[: total + 1], np.arange(total + 1)):
        raise Missing(
            f"{run.path}: weight_deltas.every = {run.config.weight_deltas.every!r} does not end "
            "with every episode; train again with --weight_deltas.every step (or episode)"
        )
    if epochs < 2:
        raise Missing(
            f"{run.path}: {episodes} episodes are done, by it or a run beside it; this needs two "
            "whole epochs"
        )
    moved = trajectory[: total + 1].diff("episodes_done").rename(episodes_done="episode")
    return moved.assign_coords(episode=np.arange(total)), epochs


def vectors(moved: xr.DataArray, which: NDArray[np.bool_]) -> stats.Floats:
    """(E·T, at most E·T): the updates of a group of modules, up to a rotation of the sketches."""
    return stats.compact(moved.values[:, which].reshape(len(moved), -1))


def _one(run: Run, episodes: int, permutations: int) -> xr.Dataset:
    T = run.config.documents.count
    moved, epochs = updates(run, episodes)
    rng = generator(run.config.seed, "rotations")
    turned = stats.rotations(T, epochs, permutations, rng)
    groups = module_groups(moved.module)
    # The kinds side by side: all of them are the whole, and one product serves every group.
    kinds = {name: vectors(moved, which) for name, which in groups.items() if name != "total"}
    ends = np.cumsum([0, *(v.shape[1] for v in kinds.values())])
    columns = {name: slice(*ends[i : i + 2]) for i, name in enumerate(kinds)}
    columns["total"] = slice(None)
    every = np.concatenate(list(kinds.values()), axis=1)
    residual, rows = stats.episode_residuals(every, T)
    # Of no rotation first, rounded as the others are: a rotation that changes nothing still ties.
    orders = np.concatenate([np.arange(len(every))[None], turned])
    chances = stats.stripes_of_orders(every, [columns[name] for name in groups], orders, T)
    parts = []
    for name, chance in zip(groups, chances.T, strict=True):
        own = residual[:, columns[name]]
        cosine, found = stats.cosines(own @ own.T), stats.stripe(own, T)
        low, high = stats.stripe_interval(cosine, T, generator(run.config.seed, "bootstrap"))
        p = stats.permutation_p(chance[0], chance[1:], slack=1e-4)
        parts.append((cosine.astype("float32"), stats.by_lag(cosine), found, low, high, p))
    stacked = [np.stack(p) for p in zip(*parts, strict=True)]
    one = ("group",)
    return xr.Dataset(
        {
            "cosine": (("group", "episodes_done", "other"), stacked[0]),
            "by_lag": (("group", "lag"), stacked[1]),
            "stripe": (one, stacked[2], {"description": "cosine at lag T minus at other lags"}),
            "stripe_low": (one, stacked[3]),
            "stripe_high": (one, stacked[4]),
            "stripe_p": (one, stacked[5]),
        },
        coords={
            "group": list(groups),
            "episodes_done": rows,
            "other": rows,
            "lag": np.arange(len(rows)),
        },
    )


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """The map of all weights for each run, and the mean cosine by lag."""
    runs, T = range(dataset.sizes["run"]), dataset.attrs["T"]
    total, edges = dataset.sel(group="total"), dataset.episodes_done.values[[0, -1]]
    fig, panels = plots.mosaic(
        [[*runs] if len(runs) > 1 else [0, "."], ["lag"] * max(2, len(runs))]
    )
    for r in runs:
        image = panels[r].imshow(
            total.cosine.isel(run=r),
            origin="lower",
            extent=(edges[0] - 0.5, edges[1] + 0.5) * 2,
            **plots.DIVERGING,
        )
        panels[r].set(title=dataset.run.values[r], xlabel="episodes done", ylabel="episodes done")
        panels[r].grid(False)
    fig.colorbar(image, ax=[panels[r] for r in runs], label="cosine of weight residuals")
    spans = panels["lag"]
    for r, name in enumerate(dataset.run.values):
        spans.plot(dataset.lag, total.by_lag.isel(run=r), color=plots.colour(r), label=name)
    for lag in range(T, dataset.sizes["lag"], T):
        spans.axvline(lag, color=plots.HELD_OUT, linewidth=0.6, linestyle=":")
    spans.axhline(0, color=plots.HELD_OUT, linewidth=0.6)
    spans.set(
        xlabel="lag (episodes; dotted: whole cycles)", ylabel="mean cosine", title="all weights"
    )
    spans.legend()
    return fig


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """Stripes by run and group, and the verdict."""
    told = []
    for r, name in enumerate(dataset.run.values):
        part = dataset.isel(run=r).sel(group="total")
        why = "some weights did not move, or T = 2"
        told.append(f"{with_test(float(part.stripe), float(part.stripe_p), '.2f', why)} in {name}")
    p = float(dataset.stripe_p.isel(run=0).sel(group="total"))
    if np.isnan(p):
        said = "nothing can be said"
    else:
        said = (
            "a cycle that chance does not give" if p < 0.05 else "no cycle can be told from chance"
        )
    text = (
        f"{compared(dataset)}Residuals of the whole weights one cycle apart are more alike than "
        f"others by {', '.join(told)}: {said}."
    )
    return {"estimates": estimates(dataset), "verdict": text}


ANALYSIS = Analysis(
    name="weight_residuals",
    question="Do the weights come back to similar places one cycle later, whatever their drift?",
    null="Without a cycle the map has no stripes at lags T, 2T, …: rotating the updates within "
    "each epoch by random amounts, which keeps what an epoch is like and puts epochs out of step, "
    "gives stripes as strong. A shuffled control has none but document 0's.",
    blind_spot="Subtracting a moving mean makes neighbours alike and residuals half a cycle apart "
    "unlike in any smooth trajectory; lags below T/2 say nothing. A cycle of period T follows "
    "from the same updates coming in the same order: it need not do anything for recovery. "
    "Cosines come from sketches, with the error in provenance.json.",
    compute=compute,
    plot=plot,
    summary=summary,
)
