"""How far the weights and a document's activations move in each episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
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
from recovery_probe.record.run import Run
from recovery_probe_analyses.activation_similarity import real
from recovery_probe_analyses.weight_residuals import updates

ACTIVATION = "activation"


def compute(run: Run, *, controls: Sequence[Run] = ()) -> xr.Dataset:
    """Sizes by episode (paper, figure 22).

    moved (run, size, episode): norm of the weights' change over the episode, from sketches, by
    group of modules; and, as `activation`, norm of the change of the focal document's final
    residual stream, all positions. path (run, group, episode): exact, the sum over the episode's
    steps of the norm of each step's update; NaN unless `weight_deltas` has every step.

    staircase (run, size): R² of the log size with a level for each epoch minus R² with a straight
    line: above 0 when it goes down by steps rather than steadily. staircase_p: the share of all T
    places to begin an epoch at which levels fit as well as at the true one (the focal document's
    turn, document 0's for weights); 1/T at the least. The episodes on the focal document itself
    are left out of its staircase (`left_out`).

    Raises `Missing` without `weight_deltas` of every episode, `residual_stream`, or two epochs.
    """
    runs = [run, *controls]
    done, told = common(runs)
    dataset = xr.concat([_one(r, done) for r in runs], dim="run").assign_coords(run=labels(runs))
    dataset.attrs |= {
        "T": run.config.documents.count,
        "focal": run.config.residual_stream.focal,
        "unit": "one run",
        "p": f"all places to begin an epoch; at least {1 / run.config.documents.count:.2g}",
        **told,
    }
    return dataset


def _one(run: Run, episodes: int) -> xr.Dataset:
    T, M = run.config.documents.count, run.config.steps
    moved, epochs = updates(run, episodes)
    total, focal = epochs * T, run.config.residual_stream.focal
    groups = module_groups(moved.module)
    sizes = {
        name: np.linalg.norm(moved.values[:, which].reshape(total, -1), axis=1)
        for name, which in groups.items()
    }
    final = run.recorder("residual_stream").final
    sizes[ACTIVATION] = np.concatenate(
        [
            _changes(real(run, final[start : start + T + 1].values, focal))
            for start in range(0, total, T)
        ]
    )
    norm = run.recorder("weight_deltas").norm.load()
    norm = norm.sel(step=norm.step < total * M)
    steps = [np.sqrt((norm.values[:, which] ** 2).sum(axis=1)) for which in groups.values()]
    episode = norm.step.values // M
    path = np.stack([np.bincount(episode, weights=s, minlength=total) for s in steps])
    if len(episode) < total * M:  # norms of several steps' updates at once
        path[:] = np.nan
    own = np.flatnonzero(run.schedule.values[:total] == focal)
    found = [
        stats.staircase(
            np.log(values),
            T,
            own if name == ACTIVATION else own[:0],
            focal if name == ACTIVATION else 0,
        )
        for name, values in sizes.items()
    ]
    return xr.Dataset(
        {
            "moved": (("size", "episode"), np.stack(list(sizes.values()))),
            "path": (("group", "episode"), path),
            "staircase": ("size", np.array([f[0] for f in found])),
            "staircase_p": ("size", np.array([f[1] for f in found])),
            "left_out": ((), len(own)),
        },
        coords={"size": list(sizes), "group": list(groups), "episode": np.arange(total)},
    )


def _changes(final: stats.Floats) -> stats.Floats:
    """Norms between neighbours of (n, position, width)."""
    change = np.diff(final.astype("float64"), axis=0).reshape(len(final) - 1, -1)
    return np.linalg.norm(change, axis=1)


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """Weights by group, and the focal document's activation, by episode."""
    T = dataset.attrs["T"]
    fig, (top, bottom) = plots.figure(rows=2, width=2 * plots.COLUMN)
    for r, name in enumerate(dataset.run.values):
        for axes, size in ((top, "total"), (bottom, ACTIVATION)):
            values = dataset.moved.isel(run=r).sel(size=size)
            axes.plot(dataset.episode, values, color=plots.colour(r), label=f"{name}: {size}")
    for i, size in enumerate(s for s in dataset["size"].values if s not in ("total", ACTIVATION)):
        values = dataset.moved.isel(run=0).sel(size=size)
        style = ("--", ":", "-.", (0, (1, 3)), (0, (5, 3)))[i % 5]
        label = f"{dataset.run.values[0]}: {size}"
        top.plot(dataset.episode, values, color=plots.HELD_OUT, linestyle=style, label=label)
    top.set(ylabel="change of the weights (norm)", yscale="log", title="weights, over an episode")
    bottom.set(
        ylabel="change of the stream (norm)",
        title=f"final residual stream of document {dataset.attrs['focal']}, over an episode",
        yscale="log",
    )
    for axes in (top, bottom):
        axes.set(xlabel="episode", xticks=np.arange(0, dataset.sizes["episode"] + 1, T))
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """Staircases by run and size, and the verdict."""
    told = []
    for size, what in (("total", "all weights"), (ACTIVATION, "the focal document's activation")):
        parts = []
        for r, name in enumerate(dataset.run.values):
            part = dataset.isel(run=r).sel(size=size)
            test = with_test(float(part.staircase), float(part.staircase_p), "+.2f", "no change")
            parts.append(f"{test} in {name}")
        told.append(f"{what}: {', '.join(parts)}")
    text = (
        f"{compared(dataset)}R² of a level for each epoch minus R² of a straight line, "
        + "; ".join(told)
    )
    last = dataset.moved.isel(run=0).sel(size="total").values
    T = dataset.attrs["T"]
    start = last[:T].mean()
    ratio = last[-T:].mean() / start if start > 0 else np.nan
    if np.isfinite(ratio):
        text += f". The last epoch's updates are {ratio:.2f} times the first's."
    else:
        text += ". The first epoch's updates have no length to hold the last one's against."
    return {
        "estimates": estimates(dataset),
        "left_out": "episodes on the focal document are left out of the activation's staircase",
        "verdict": text,
    }


ANALYSIS = Analysis(
    name="step_sizes",
    question="Do weights and activations settle steadily, or by a step each time the cycle closes?",
    null="Steady settling: a straight line fits the logarithm as well as a level for each epoch, "
    "and levels fit as well wherever an epoch is said to begin.",
    blind_spot="Norms say how far, not where to. Documents differ, and a cycle repeats their "
    "differences every epoch: that is not a staircase. The p-value cannot be below 1/T. Weight "
    "changes over an episode are norms of sketches (the error is in provenance.json); activations "
    "are stored in float16, which hides changes below a thousandth of their size.",
    compute=compute,
    plot=plot,
    summary=summary,
)
