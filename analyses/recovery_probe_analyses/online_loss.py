"""Prequential loss: the loss of the document about to be trained on."""

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
    labels,
    number,
    numbers,
    unit,
    with_interval,
)

from recovery_probe import plots, stats
from recovery_probe.record.run import Run
from recovery_probe.seeds import generator


def compute(run: Run, *, controls: Sequence[Run] = ()) -> xr.Dataset:
    """First training loss of each episode, nats per token (paper, section 3 and its table of
    online losses, which averages epochs 2 to E).

    Returns online (run, epoch, document); mean, low, high (run, epoch), over documents; later,
    later_low, later_high (run), the mean over epochs 2 to E, or to the last that the run and its
    controls have all finished (attribute `last_epoch`); difference, difference_low,
    difference_high (control), run minus control of that mean, paired by document. Intervals are
    95% percentile bootstraps over documents. NaN where a run has not got to.
    """
    runs = [run, *controls]
    T = run.config.documents.count
    online = np.stack(
        [stats.online_loss(r.train_loss.values, r.config.steps, r.schedule.values) for r in runs]
    )
    done, told = common(runs)
    last = done // T
    later = online[:, 1:last].mean(axis=1) if last > 1 else np.full((len(runs), T), np.nan)
    seed = run.config.seed
    by_epoch = [_mean_and_interval(values, seed) for values in online]
    over = _mean_and_interval(later, seed)
    paired = _mean_and_interval(later[0] - later[1:], seed)
    dataset = xr.Dataset(
        {"online": (("run", "epoch", "document"), online)},
        coords={
            "run": labels(runs),
            "epoch": np.arange(1, run.config.epochs + 1),
            "document": np.arange(T),
            "control": labels(runs)[1:],
        },
        attrs={
            "unit": "documents",
            "units": "nats per token",
            "interval": "95% percentile bootstrap over documents",
            "last_epoch": last,
            **told,
        },
    )
    for i, suffix in enumerate(("", "_low", "_high")):
        dataset["mean" + suffix] = (("run", "epoch"), np.stack([b[i] for b in by_epoch]))
        dataset["later" + suffix] = ("run", over[i])
        dataset["difference" + suffix] = ("control", paired[i])
    return dataset


def _mean_and_interval(values: stats.Floats, seed: int) -> tuple[stats.Floats, ...]:
    """Mean over documents, the last axis, with its interval; NaN where a document is missing."""
    low, high = stats.bootstrap_interval(
        lambda i: values.T[i].mean(axis=1), values.shape[-1], generator(seed, "bootstrap")
    )
    return values.mean(axis=-1), low, high


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """Mean online loss by epoch, with intervals."""
    fig, (axes,) = plots.figure()
    for r, name in enumerate(dataset.run.values):
        part, colour = dataset.isel(run=r), plots.colour(r)
        axes.plot(part.epoch, part["mean"], "o-", color=colour, markersize=4, label=name)
        axes.vlines(part.epoch, part.mean_low, part.mean_high, color=colour, linewidth=1)
    axes.set(xlabel="epoch", ylabel="online loss (nats/token)", xticks=dataset.epoch.values)
    axes.legend()
    return fig


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """By epoch and over epochs 2 to E, of the run, of its controls, and their difference."""
    runs = {
        str(name): {
            "by_epoch": numbers(dataset["mean"].values[r]),
            "mean_epochs_2_to_E": number(dataset.later.values[r]),
            "interval": [number(dataset.later_low.values[r]), number(dataset.later_high.values[r])],
        }
        for r, name in enumerate(dataset.run.values)
    }
    first, *others = runs
    differences = {
        name: {
            "difference": number(dataset.difference.values[i]),
            "interval": [
                number(dataset.difference_low.values[i]),
                number(dataset.difference_high.values[i]),
            ],
        }
        for i, name in enumerate(others)
    }
    return {
        **runs[first],
        "last_epoch": dataset.attrs["last_epoch"],
        "controls": {name: runs[name] for name in others},
        "run_minus_control": differences,
        "verdict": _verdict(dataset),
    }


def _verdict(dataset: xr.Dataset) -> str:
    def told(r: int) -> str:
        return with_interval(
            *(float(dataset["later" + s].values[r]) for s in ("", "_low", "_high"))
        )

    if np.isnan(dataset.later.values[0]):
        return (
            f"{compared(dataset)}The online loss over epochs 2 to E is not defined: no second "
            "epoch was finished."
        )
    text = (
        f"{compared(dataset)}Over epochs 2 to {dataset.attrs['last_epoch']} the online loss is "
        f"{told(0)} nats per token."
    )
    for i in range(dataset.sizes["control"]):
        value, low, high = (float(dataset["difference" + s][i]) for s in ("", "_low", "_high"))
        text += f" The control {dataset.run.values[i + 1]} has {told(i + 1)}; run minus control is "
        text += with_interval(value, low, high) + ": "
        text += against_zero(
            value,
            low,
            high,
            "higher than the control.",
            f"lower than the control, as far as {unit(dataset)} tell.",
            "no difference from the control can be told.",
        )
    return text


ANALYSIS = Analysis(
    name="online_loss",
    question="Is a document easier, when its turn comes, because its turn could be foreseen?",
    null="The same online loss as the shuffled control, which trains as often on the same "
    "documents.",
    blind_spot="A shuffled document waits between 1 and 2T-1 episodes instead of T: part of a "
    "difference can come from that spread. Without several seeds the interval is "
    "over documents of one training run.",
    compute=compute,
    plot=plot,
    summary=summary,
)
