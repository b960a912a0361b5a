"""Loss of a focal document, shift-averaged loss, held-out loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from recovery_probe.analysis import Analysis, labels, number

from recovery_probe import plots, stats
from recovery_probe.errors import InputError
from recovery_probe.record.run import Run
from recovery_probe.seeds import generator


def compute(run: Run, *, controls: Sequence[Run] = (), focal: int | None = None) -> xr.Dataset:
    """Losses to draw, nats per token.

    focal (run, episodes_done) is the loss of document `focal`, the middle one of the cycle when
    not given: the first comes first in a shuffled control too, so that the two look alike. before
    (run, visit): the episodes done right before each episode on it; trained and held_out (run,
    episodes_done) are means over those documents. aligned (run, shifted) is the shift-averaged loss
    (paper, A.4), NaN for a shuffled run, with aligned_low and aligned_high, 95% bootstrap over
    documents.

    Raises `InputError` for a focal document that is not there.
    """
    T = run.config.documents.count
    focal = T // 2 if focal is None else focal
    if not 0 <= focal < T:
        raise InputError(f"focal = {focal}: the documents trained on are 0 to {T - 1}")
    runs = [run, *controls]
    dataset = xr.concat([_one(r, focal) for r in runs], dim="run").assign_coords(run=labels(runs))
    dataset.attrs |= {"focal": focal, "focal_name": str(run.record.name.values[focal])}
    return dataset


def _one(run: Run, focal: int) -> xr.Dataset:
    T = run.config.documents.count
    losses, schedule = run.losses.values, run.schedule.values
    rows = (run.config.epochs - 1) * T + 2
    aligned = low = high = np.full(rows, np.nan)
    if run.config.schedule.kind == "cyclic":
        each = stats.shift_aligned(losses[:, :T], schedule)  # (rows, T)
        aligned = each.mean(axis=1)
        low, high = stats.bootstrap_interval(
            lambda i: stats.resampled_means(each.T, i), T, generator(run.config.seed, "bootstrap")
        )
    return xr.Dataset(
        {
            "focal": ("episodes_done", losses[:, focal]),
            "before": ("visit", stats.visits(schedule, T)[focal]),
            "trained": ("episodes_done", losses[:, :T].mean(axis=1)),
            "held_out": ("episodes_done", stats.mean_of_counted(losses[:, T:])),
            "aligned": ("shifted", aligned),
            "aligned_low": ("shifted", low),
            "aligned_high": ("shifted", high),
        },
        coords={"episodes_done": np.arange(len(losses)), "shifted": np.arange(rows)},
        attrs={"units": "nats per token", "T": T, "interval": "95% bootstrap over documents"},
    )


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """Three panels: the focal document, the shift-averaged loss, the held-out documents."""
    fig, (top, middle, bottom) = plots.figure(rows=3, width=2 * plots.COLUMN, height=2.0)
    T = dataset.attrs["T"]
    for r, name in enumerate(dataset.run.values):
        part, colour = dataset.isel(run=r), plots.colour(r)
        before = part.before.values
        top.plot(part.episodes_done, part.focal, color=colour, label=name)
        top.plot(before, part.focal.values[before], "o", color=colour, markersize=4)
        if np.isnan(part.aligned).all():
            middle.plot(
                part.episodes_done,
                part.trained,
                color=colour,
                linestyle="--",
                label=f"{name}: mean over documents, not aligned",
            )
        else:
            middle.plot(part.shifted, part.aligned, color=colour, label=f"{name}: shift-averaged")
            middle.fill_between(
                part.shifted,
                part.aligned_low,
                part.aligned_high,
                color=colour,
                alpha=0.2,
                linewidth=0,
                label="95% over documents",
            )
            at = np.arange(0, part.sizes["shifted"], T)
            middle.plot(at, part.aligned.values[at], "o", color=colour, markersize=4)
        bottom.plot(part.episodes_done, part.held_out, color=colour, label=name)
    title = f"document {dataset.attrs['focal']}: dots right before each episode on it"
    top.set(title=title, xlabel="episodes done")
    middle.set(
        title="all documents, each moved so that 0 is right before its first episode",
        xlabel="episodes done since then",
    )
    bottom.set(title="held-out documents, never trained on (mean)", xlabel="episodes done")
    if np.isnan(dataset.held_out).all():
        plots.note(bottom, "no document was held out")
    for axes in (top, middle, bottom):
        axes.set(ylabel="loss (nats/token)", xlim=(0, dataset.sizes["episodes_done"] - 1))
        axes.set_xticks(np.arange(0, dataset.sizes["episodes_done"], T))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper right")
    return fig


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """Untrained and last losses, by run."""
    return {
        "focal_document": dataset.attrs["focal"],
        "focal_name": dataset.attrs["focal_name"],
        "runs": {
            str(name): {
                kind: {"untrained": number(values[0]), "last": number(_last(values))}
                for kind in ("focal", "trained", "held_out")
                for values in [dataset[kind].values[r]]
            }
            for r, name in enumerate(dataset.run.values)
        },
    }


def _last(values: stats.Floats) -> float:
    counted = values[np.isfinite(values)]
    return float(counted[-1]) if len(counted) else np.nan


ANALYSIS = Analysis(
    name="loss_curves",
    question="How does the loss of a document rise and fall between two episodes on it?",
    null="Plain forgetting: the loss jumps down at each episode on the document, then climbs or "
    "stays until the next one.",
    blind_spot="One focal document is one case, and a smooth average can hide that documents "
    "differ. A fall that the held-out documents share is general improvement, not anticipation.",
    compute=compute,
    plot=plot,
    summary=summary,
)
