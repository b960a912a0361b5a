"""The picture: mean loss while documents wait for their next turn, beside the control's.

A cyclic run's lines bend down before the turn comes; without anticipation they stay up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recovery_probe import stats
from recovery_probe.analyze import plots
from recovery_probe.analyze.groups import labels
from recovery_probe.errors import Missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recovery_probe.run import Run

TITLE = "Mean loss of documents while they wait for their next turn"
LABELLED = 6  # epochs named in the legend, at most


def numbers(run: Run, controls: Sequence[Run] = ()) -> xr.Dataset:
    """Losses of the documents trained on, while they wait for their next turn.

    loss (run, epoch, until): mean over documents, nats per token; until: episodes until the
    document's next turn, negative before it, 0 right before; epoch n is the wait after the n-th
    episode on a document. documents (run, epoch, until): how many the mean is of. NaN and 0 where
    a run has not got to, or no wait is so long. shortest, longest (run): waits, in episodes.

    Raises `Missing` when no document of the run waits for its next turn yet.
    """
    runs = [run, *controls]
    dataset = xr.concat(
        [_one(r) for r in runs], "run", join="outer", fill_value={"loss": np.nan, "documents": 0}
    ).assign_coords(run=labels(runs))
    if not dataset.documents.isel(run=0).any():
        raise Missing(
            f"{run.path}: {run.episodes_done} of {run.schedule.size} episodes are done, of "
            f"{run.config.epochs} epochs: no document waits for its next turn"
        )
    dataset.loss.attrs["units"] = "nats per token"
    for name in ("until", "shortest", "longest"):
        dataset[name].attrs["units"] = "episodes"
    dataset.attrs["T"] = run.config.documents.count
    return dataset


def _one(run: Run) -> xr.Dataset:
    T, schedule = run.config.documents.count, run.schedule.values
    each = stats.until_turn(run.losses.values[:, :T], schedule, T)[..., ::-1]
    waits = [np.diff(np.flatnonzero(schedule == d)) for d in range(T)]
    spans = np.concatenate(waits) if each.size else np.zeros(1, dtype=int)
    return xr.Dataset(
        {
            "loss": (("epoch", "until"), stats.mean_of_counted(each, axis=0)),
            "documents": (("epoch", "until"), np.isfinite(each).sum(axis=0)),
            "shortest": spans.min(),
            "longest": spans.max(),
        },
        coords={
            "epoch": np.arange(1, each.shape[1] + 1),
            "until": np.arange(1 - each.shape[2], 1),
        },
    )


def of_seeds(groups: Sequence[tuple[Run, Sequence[Run]]]) -> xr.Dataset:
    """`numbers` of each run with its controls; of several, which differ in their seed, along a
    dimension `seed`. Raises `Missing` where `numbers` does."""
    parts = [numbers(run, controls) for run, controls in groups]
    if len(parts) == 1:
        return parts[0]
    parts = [part.assign_coords(run=parts[0].run) for part in parts]
    return xr.concat(parts, "seed", join="outer", fill_value={"loss": np.nan, "documents": 0})


def reading(dataset: xr.Dataset) -> str:
    """How to read the picture, and how far the last line that is whole falls before the turn,
    from its top where half of the documents count or more."""
    mean = dataset.mean("seed") if "seed" in dataset.dims else dataset
    T = dataset.attrs["T"]
    whole = np.flatnonzero(mean.documents.isel(run=0, until=-1) == T)
    text = (
        "Each line is one epoch: the mean loss of the documents while they wait for their next "
        "turn, which comes at 0."
    )
    if not len(whole):
        return text
    last = mean.isel(epoch=whole[-1])
    falls = last.loss.where(last.documents >= T / 2).max("until") - last.loss.isel(until=-1)
    told = [f"{float(f):.2f} nats in {f.run.item()}" for f in falls if np.isfinite(f)]
    return f"{text} After epoch {last.epoch.item()} it falls from its top by {', '.join(told)}."


@plots.styled
def draw(dataset: xr.Dataset) -> Figure:
    """A panel for each run, all on the same axes; a line is thinner where fewer documents count.
    Of several seeds (a dimension `seed`): their mean, and each seed faint."""
    seeds = dataset if "seed" in dataset.dims else dataset.expand_dims("seed")
    mean, epochs, runs = seeds.mean("seed"), dataset.epoch.values, dataset.sizes["run"]
    cells = [*range(runs), *["."] * (runs > 1 and runs % 2)]
    rows = [cells[i : i + 2] for i in range(0, len(cells), 2)]
    fig, panels = plots.mosaic(rows, height=2.7, sharex=True, sharey=True)
    colours = plots.by_epoch(len(epochs))
    for r, axes in panels.items():
        for e, colour in enumerate(colours):
            if seeds.sizes["seed"] > 1:
                each = seeds.loss.isel(run=r, epoch=e).values
                axes.plot(dataset.until, each.T, color=colour, linewidth=0.5, alpha=0.4)
            _line(axes, mean.isel(run=r, epoch=e), colour)
        shortest, longest = int(seeds.shortest[:, r].min()), int(seeds.longest[:, r].max())
        told = f"every document waits\n{longest} episodes for its turn"
        if shortest < longest:
            told = f"waits of {shortest} to {longest} episodes\nare mixed: thin where few count"
        axes.set_title(f"{dataset.run.values[r]}: {told}")
        axes.set_xlabel("episodes until the document's next turn")
        axes.locator_params(axis="x", integer=True)
    panels[0].set(ylabel="mean loss (nats/token)")
    panels[0].set_xlim(0.5 - int(seeds.longest[:, 0].max()), 0.5)
    for e in np.unique(np.linspace(0, len(epochs) - 1, LABELLED).round().astype(int)):
        panels[0].plot([], [], color=colours[e], label=f"after epoch {epochs[e]}")
    fig.legend(loc="outside lower center", ncols=LABELLED)
    return fig


def _line(axes: Axes, part: xr.Dataset, colour: object) -> None:
    from matplotlib.collections import LineCollection

    points = np.stack([part.until, part.loss], axis=-1)
    documents = part.documents.values / part.attrs["T"]
    axes.add_collection(
        LineCollection(
            list(np.stack([points[:-1], points[1:]], axis=1)),
            linewidths=0.3 + 1.5 * np.minimum(documents[:-1], documents[1:]),
            color=colour,
            capstyle="round",
        )
    )
    axes.plot(points[-1, 0], points[-1, 1], "o", color=colour, markersize=3.5, clip_on=False)
