"""Is the recovery of a document more than general improvement? Differences in differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from recovery_probe.analysis import (
    Analysis,
    against_zero,
    common,
    compared,
    estimates,
    labels,
    unit,
    with_interval,
)

from recovery_probe import plots, stats
from recovery_probe.errors import Missing
from recovery_probe.record.run import Run
from recovery_probe.seeds import generator

HELD_OUT = "held-out"


def compute(run: Run, *, controls: Sequence[Run] = ()) -> xr.Dataset:
    """Between two episodes on a document, take the last third of the wait, and how far the loss
    falls in it (nats, positive for a fall).

    fall (run, epoch, document): of the document itself; held_out_fall (epoch, document): of the
    mean held-out document over the same episodes of the run; for a control, of the same document
    over the same episodes, NaN, and counted in left_out (run), where it trains on it then.

    effect (against, epoch): the run's fall minus that of what it is held against, mean over
    documents: positive when documents fall by more. overall (against): over all epochs; size
    (against): the same in standard deviations of documents. Against: `held-out` and each control.
    Intervals are 95% percentile bootstraps over documents, and over held-out ones at once.

    Raises `Missing` when no document has come back yet, or with nothing to hold it against.
    """
    T = run.config.documents.count
    held_out = run.losses.shape[1] - T
    if not held_out and not controls:
        raise Missing(
            f"{run.path}: no document was held out and there is no control: train with "
            "--documents.held_out 5 or --control shuffled"
        )
    turns = stats.visits(run.schedule.values, T)
    before = turns[:, 1:].T  # (epoch, document): episodes done right before the next episode
    start = before - (before - turns[:, :-1].T) // 3
    falls = np.stack(
        [stats.fall(r.losses.values, r.schedule.values, start, before) for r in (run, *controls)]
    )
    if not np.isfinite(falls[0]).any():
        raise Missing(f"{run.path}: {run.episodes_done} episodes: no document has come back yet")
    losses = run.losses.values[:, T:]
    held = losses[start] - losses[before]  # (epoch, document, held-out document)
    others = {HELD_OUT: held} if held_out else {}
    others |= dict(zip(labels([run, *controls])[1:], falls[1:, ..., None], strict=True))
    found = [_effects(falls[0][..., None] - other, run.config.seed) for other in others.values()]
    dataset = xr.Dataset(
        {
            "fall": (("run", "epoch", "document"), falls, {"units": "nats"}),
            "held_out_fall": (
                ("epoch", "document"),
                stats.mean_of_counted(held),
                {"units": "nats"},
            ),
            "left_out": ("run", np.isnan(falls).sum(axis=(1, 2)), {"of_seeds": "sum"}),
        },
        coords={
            "run": labels([run, *controls]),
            "epoch": np.arange(1, len(before) + 1),
            "document": np.arange(T),
            "against": list(others),
        },
        attrs={
            "unit": "documents",
            "interval": "95% percentile bootstrap over documents, and over held-out ones",
            **common([run, *controls])[1],
        },
    )
    for i, suffix in enumerate(("", "_low", "_high")):
        stacked = np.stack([bounds[i] for bounds in found])  # (against, epoch + 1, 2)
        dataset["effect" + suffix] = (("against", "epoch"), stacked[:, :-1, 0])
        dataset["overall" + suffix] = ("against", stacked[:, -1, 0])
        dataset["size" + suffix] = ("against", stacked[:, -1, 1])
    for name in ("effect", "overall"):
        dataset[name].attrs["units"] = "nats"
    return dataset


def _effects(difference: stats.Floats, seed: int) -> stats.Floats:
    """Of differences (epoch, document, held-out document): value, low and high, (3, epoch + 1, 2):
    their mean, and the mean in standard deviations of documents; the last row is that of the
    means over epochs."""
    rng = generator(seed, "bootstrap")
    rows = [*difference, stats.mean_of_counted(difference, axis=0)]
    return np.stack([stats.effect(row, rng) for row in rows], axis=1)


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """Falls by epoch of the run, the held-out documents and the controls; and the effects."""
    fig, (top, bottom) = plots.figure(rows=2)
    epochs = dataset.epoch.values
    for r, name in enumerate(dataset.run.values):
        falls = dataset.fall.isel(run=r)
        top.plot(epochs, falls.mean("document"), "o-", color=plots.colour(r), label=name, ms=4)
    if np.isfinite(dataset.held_out_fall).any():
        mean = dataset.held_out_fall.mean("document")
        top.plot(epochs, mean, "s--", color=plots.HELD_OUT, label=HELD_OUT, ms=4)
    top.axhline(0, color=plots.HELD_OUT, linewidth=0.6)
    top.set(xlabel="epoch", ylabel="fall (nats/token)", xticks=epochs)
    top.set_title("fall of the loss in the last third of the wait")
    top.legend()
    for i, name in enumerate(dataset.against.values):
        part = dataset.isel(against=i)
        colour = (
            plots.HELD_OUT
            if name == HELD_OUT
            else plots.colour(i if HELD_OUT in dataset.against else i + 1)
        )
        x = epochs + 0.12 * (i - (dataset.sizes["against"] - 1) / 2)
        bottom.vlines(x, part.effect_low, part.effect_high, color=colour, linewidth=1)
        bottom.plot(x, part.effect, "o", color=colour, markersize=4, label=f"against {name}")
    bottom.axhline(0, color=plots.HELD_OUT, linewidth=0.6)
    bottom.set(xlabel="epoch", ylabel="difference in falls (nats/token)", xticks=epochs)
    bottom.legend()
    return fig


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """Effects, how many cases the control leaves out, and the verdict."""
    told = []
    for name in dataset.against.values:
        part = dataset.sel(against=name)
        value, low, high = (float(part["overall" + s]) for s in ("", "_low", "_high"))
        deviations = float(part["size"])
        size = (
            "standard deviations not defined"
            if np.isnan(deviations)
            else f"{deviations:.1f} standard deviations"
        )
        said = against_zero(
            value,
            low,
            high,
            f"more than drift, as far as {unit(dataset)} tell",
            "less than what it is held against",
            "no difference can be told",
        )
        told.append(f"{with_interval(value, low, high)} nats further than {name} ({size}): {said}")
    text = (
        f"{compared(dataset)}In the last third of the wait for their turn the documents' losses "
        "fall " + "; ".join(told) + f". The unit is {dataset.attrs['unit']}."
    )
    left_out = {str(name): int(dataset.left_out.sel(run=name)) for name in dataset.run.values}
    return {"estimates": estimates(dataset), "left_out": left_out, "verdict": text}


ANALYSIS = Analysis(
    name="order_vs_drift",
    question="Does a document recover by more than everything else improves at that time?",
    null="If all that happens is general improvement (or decay), trained and held-out documents "
    "change alike over the same episodes, and so does the document in the control: 0.",
    blind_spot="Held-out documents were never learned, so that they have nothing to recover: what "
    "trained documents have in common with them is taken away, forgetting is not. Against the "
    "control, documents are compared at other distances from their last episode. The control's "
    "cases in which it trains on the document in that stretch are left out and counted. With one "
    "run the unit is the document, and all documents share its trajectory.",
    compute=compute,
    plot=plot,
    summary=summary,
)
