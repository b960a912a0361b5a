"""Recovery score by epoch, in both readings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from recovery_probe import plots, stats
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
from recovery_probe.config import generator
from recovery_probe.run import Run

READINGS = ("curve", "per_document")


def compute(
    run: Run, *, controls: Sequence[Run] = (), min_forgetting: float = stats.MIN_FORGETTING
) -> xr.Dataset:
    """RS(n) = (l_max(n) - l_before(n)) / (l_max(n) - l_after(n-1)), n = 1 … E-1 (paper, section 3).

    `curve`: of the document-averaged shift-aligned loss, the reading that the published bars
    match; defined for a cyclic schedule alone. `per_document`: the mean over documents of each
    one's own score, as the text says. Intervals are 95% percentile bootstraps over documents.
    A score is left out, and its reason counted, when less than `min_forgetting` nats were
    forgotten. `difference` is run minus control, per document, over documents that count in both.

    Returns score, score_low, score_high (run, reading, epoch); document_score and reason
    (run, epoch, document); difference, difference_low, difference_high (control, epoch).
    """
    runs = [run, *controls]
    parts = [_one(r, min_forgetting) for r in runs]
    dataset = xr.concat(parts, dim="run").assign_coords(run=labels(runs))
    dataset["kind"] = ("run", [r.config.schedule.kind for r in runs])
    scores = dataset.document_score.values
    paired = [_mean_and_interval(scores[0] - other, run.config.seed) for other in scores[1:]]
    for i, name in enumerate(("difference", "difference_low", "difference_high")):
        values = np.reshape([p[i] for p in paired], (len(controls), scores.shape[1]))
        dataset[name] = (("control", "epoch"), values)
    dataset = dataset.assign_coords(control=dataset.run.values[1:])
    dataset.attrs |= common(runs)[1]
    dataset.attrs["min_forgetting"] = min_forgetting
    dataset.attrs["unit"] = "documents"
    dataset.attrs["interval"] = "95% percentile bootstrap over documents, 2000 resamples"
    for name in ("score", "document_score", "difference"):
        dataset[name].attrs["units"] = "share of forgotten loss"
    dataset.reason.attrs["meaning"] = str({stats.COUNTED: "counts", **stats.REASONS})
    for name in ("reason", "curve_reason"):
        dataset[name].attrs["of_seeds"] = "each"
    return dataset


def _one(run: Run, min_forgetting: float) -> xr.Dataset:
    T, epochs = run.config.documents.count, run.config.epochs - 1
    schedule, losses = run.schedule.values, run.losses.values[:, :T]
    scores, reasons = stats.recovery_per_document(losses, schedule, min_forgetting)
    mean, low, high = _mean_and_interval(scores, run.config.seed)
    curve = curve_low = curve_high = np.full(epochs, np.nan)
    curve_reason = np.full(epochs, stats.NOT_REACHED)
    if run.config.schedule.kind == "cyclic":
        aligned = stats.shift_aligned(losses, schedule)
        curve, curve_reason = stats.recovery_of_curve(aligned.mean(axis=1), T, min_forgetting)
        curve_low, curve_high = stats.bootstrap_interval(
            lambda i: stats.recovery_of_curve(
                stats.resampled_means(aligned.T, i), T, min_forgetting
            )[0],
            T,
            generator(run.config.seed, "bootstrap"),
        )
    by_epoch = ("reading", "epoch")
    return xr.Dataset(
        {
            "score": (by_epoch, np.stack([curve, mean])),
            "score_low": (by_epoch, np.stack([curve_low, low])),
            "score_high": (by_epoch, np.stack([curve_high, high])),
            "document_score": (("epoch", "document"), scores),
            "reason": (("epoch", "document"), reasons),
            "curve_reason": ("epoch", curve_reason),
        },
        coords={
            "reading": list(READINGS),
            "epoch": np.arange(1, epochs + 1),
            "document": np.arange(T),
        },
    )


def _mean_and_interval(scores: stats.Floats, seed: int) -> tuple[stats.Floats, ...]:
    """Mean over documents of (epochs, documents) scores, leaving NaN out, with its interval."""
    low, high = stats.bootstrap_interval(
        lambda i: stats.resampled_means_of_counted(scores.T, i),
        scores.shape[1],
        generator(seed, "bootstrap"),
    )
    # An interval of fewer than three documents says nothing.
    few = np.isfinite(scores).sum(axis=1) < 3
    return stats.mean_of_counted(scores), np.where(few, np.nan, low), np.where(few, np.nan, high)


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """Score by epoch: filled for the curve reading, open for the per-document one."""
    fig, (axes,) = plots.figure(height=2.7)
    if not dataset.sizes["epoch"]:
        plots.note(axes, "one epoch: no document came back")
    offsets = np.linspace(-0.12, 0.12, 2 * dataset.sizes["run"])
    lines = [(r, g) for r in range(dataset.sizes["run"]) for g in range(len(READINGS))]
    for offset, (r, g) in zip(offsets, lines, strict=True):
        part = dataset.isel(run=r, reading=g)
        if np.isnan(part.score.values).all():
            continue
        x = part.epoch.values + offset
        colour, curve = plots.colour(r), READINGS[g] == "curve"
        axes.vlines(x, part.score_low, part.score_high, color=colour, linewidth=1)
        axes.plot(
            x,
            part.score,
            marker="o" if curve else "s",
            markersize=4,
            color=colour,
            markerfacecolor=colour if curve else "white",
            linestyle="-" if curve else "--",
            label=f"{part.run.item()}, {'averaged curve' if curve else 'mean over documents'}",
        )
    axes.set(xlabel="epoch", ylabel="recovery score", xticks=dataset.epoch.values)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if axes.get_legend_handles_labels()[0]:
        fig.legend(loc="outside upper left")
    return fig


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """`curve` and `per_document` of the run, the same of every control, and the verdict."""
    first = _readings(dataset.isel(run=0))
    others = dataset.sizes["run"] - 1
    differences = {
        str(dataset.run.values[i + 1]): {
            "difference_by_epoch": numbers(dataset.difference.values[i]),
            "interval_by_epoch": _intervals(dataset, "difference_low", "difference_high", i),
        }
        for i in range(others)
    }
    return {
        **first,
        "controls": {
            str(dataset.run.values[i]): _readings(dataset.isel(run=i)) for i in range(1, others + 1)
        },
        "run_minus_control": differences,
        "verdict": _verdict(dataset),
    }


def _readings(part: xr.Dataset) -> dict[str, Any]:
    cyclic = part.kind.item() == "cyclic"
    curve, mean = part.sel(reading="curve"), part.sel(reading="per_document")
    return {
        "curve": {
            "defined": cyclic,
            **({} if cyclic else {"why_not": "documents of a shuffled run have no common period"}),
            "score_by_epoch": numbers(curve.score.values),
            "interval_by_epoch": _intervals(curve),
            **_excluded(part.curve_reason),
        },
        "per_document": {
            "score_by_epoch": numbers(mean.score.values),
            "interval_by_epoch": _intervals(mean),
            **_excluded(part.reason),
        },
    }


def _intervals(
    part: xr.Dataset, low: str = "score_low", high: str = "score_high", row: int | None = None
) -> list[list[float | None]]:
    lows, highs = part[low].values, part[high].values
    if row is not None:
        lows, highs = lows[row], highs[row]
    return [[number(a), number(b)] for a, b in zip(lows, highs, strict=True)]


def _excluded(reasons: xr.DataArray) -> dict[str, Any]:
    """How many were left out at each epoch, and how many for each reason. The averaged curve
    is one thing, left out or not."""
    by_epoch = [row.values for row in reasons.transpose("epoch", ...)]
    return {
        "excluded_by_epoch": [int((row != stats.COUNTED).sum()) for row in by_epoch],
        "excluded_reasons_by_epoch": [
            {text: int((row == code).sum()) for code, text in stats.REASONS.items() if code in row}
            for row in by_epoch
        ],
    }


def _verdict(dataset: xr.Dataset) -> str:
    has_score = np.isfinite(dataset.document_score.values).any(axis=2)  # (run, epoch)
    if not has_score[0].any():
        return "No document came back after having been forgotten: there is no score."
    # The last epoch that all have a score of: one that was interrupted is compared where it got.
    reached = np.flatnonzero(has_score.all(axis=0))
    if not len(reached):
        reached = np.flatnonzero(has_score[0])
    last = int(reached[-1])
    epoch = int(dataset.epoch.values[last])

    def told(r: int, reading: str) -> str:
        part = dataset.isel(run=r, epoch=last).sel(reading=reading)
        return with_interval(*(float(part[name]) for name in ("score", "score_low", "score_high")))

    text = (
        f"{compared(dataset)}At epoch {epoch} the recovery score is {told(0, 'per_document')} per "
        "document"
    )
    if dataset.kind.values[0] == "cyclic":
        text += f" and {told(0, 'curve')} for the averaged curve"
    counted = dataset.reason.isel(run=0, epoch=last).values == stats.COUNTED
    seeds = ", all seeds together" if "seed" in dataset.reason.dims else ""
    text += f" ({counted.sum()} of {counted.size} documents count{seeds})."
    for i in range(dataset.sizes["control"]):
        names = ("difference", "difference_low", "difference_high")
        value, low, high = (float(dataset[n].values[i, last]) for n in names)
        control = dataset.run.values[i + 1]
        text += (
            f" The control {control} scores {told(i + 1, 'per_document')} per document; the run "
            f"minus the control is {with_interval(value, low, high)}: "
        )
        text += against_zero(
            value,
            low,
            high,
            f"more than the control, as far as {unit(dataset)} tell.",
            "less than the control.",
            "no difference from the control can be told.",
        )
    return text


ANALYSIS = Analysis(
    name="recovery",
    question="How much of what was forgotten comes back before a document is seen again?",
    null="Without anticipation the loss stays where forgetting took it: a score near that of the "
    "shuffled control. It is not 0 there: l_max is a maximum, so that noise in the loss alone "
    "makes a score positive.",
    blind_spot="The documents share one training trajectory: an interval over documents says how "
    "much they differ, not how much another seed would. General improvement late in the cycle "
    "also raises the score; order_vs_drift holds it against held-out documents. A shuffled "
    "document waits between 1 and 2T-1 episodes, and a short wait leaves less to forget.",
    compute=compute,
    plot=plot,
    summary=summary,
)
