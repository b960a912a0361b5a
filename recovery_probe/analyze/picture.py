"""The picture: mean loss by age, the episodes since a document was last trained on, beside the
control at equal age and equal time.

Without anticipation the two lines are one. A cyclic run's rises higher in mid-wait, and has come
down, perhaps to below the control's, when the document's turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recovery_probe import stats
from recovery_probe.analyze import ages, estimate, plots
from recovery_probe.analyze.across import across

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recovery_probe.record.run import Run

TITLE = "Mean loss of documents by the episodes since they were last trained on"
PARTS = {
    "excess": ("excess in mid-wait", plots.FOURTH),
    "gain": ("gain on arrival", plots.THIRD),
    "matched_fall": ("matched fall: both", "#333333"),
}


def numbers(run: Run, controls: Sequence[Run] = ()) -> xr.Dataset:
    """Those of `ages.numbers`, and with it what `Missing` it raises."""
    return ages.numbers(run, *controls)


def of_seeds(groups: Sequence[tuple[Run, Sequence[Run]]]) -> xr.Dataset:
    """`numbers` of each run with its controls; of several, which differ in their seed, as `across`
    has them."""
    return across([numbers(run, controls) for run, controls in groups])


def caption(dataset: xr.Dataset) -> str:
    """How to read the picture."""
    epoch, run = ages.last_epoch(dataset), dataset.run.values[0]
    return (
        f"The mean loss of a document by the episodes since its own last one: in {run} its turn "
        f"comes after {ages.turn(dataset)}, and mid-wait is after {dataset.attrs['middle']}. Bold: "
        f"epoch {epoch}; faint: the epochs before, as far as they fit."
    )


def reading(dataset: xr.Dataset) -> str:
    """Words that stand for the picture."""
    epoch, text = ages.last_epoch(dataset), caption(dataset)
    for control in dataset.control.values:
        gain, excess, fall = (
            estimate.get(dataset, name, control=control, epoch=epoch)
            for name in ("gain", "excess", "matched_fall")
        )
        if not np.isnan(gain.value):
            text += (
                f" Against the same documents in {control}, at equal age and time, it is "
                f"{excess.value:+.2f} nats in mid-wait and {-gain.value:+.2f} nats on arrival: it "
                f"falls by {fall.value:.2f} nats more."
            )
    return text


@plots.styled
def draw(dataset: xr.Dataset) -> Figure:
    """For each control the last epoch's losses by age, and the gain, the excess and their sum; the
    run alone where it has none. Of several seeds their mean, and each seed faint."""
    controls, epoch = [str(name) for name in dataset.control.values], ages.last_epoch(dataset)
    rows = [[f"{panel} {c}" for panel in ("curve",) * 3 + ("parts",)] for c in controls]
    fig, panels = plots.mosaic(rows or [["curve"]], height=3.0)
    for i, control in enumerate(controls):
        axes = panels[f"curve {control}"]
        _curves(axes, dataset, epoch, control, plots.colour(1 + i))
        _parts(panels[f"parts {control}"], dataset.sel(control=control, epoch=epoch))
    if not controls:
        _curves(panels["curve"], dataset, epoch)
    return fig


def _curves(
    axes: Axes, dataset: xr.Dataset, epoch: int, control: str = "", colour: str = ""
) -> None:
    run, T, middle = str(dataset.run.values[0]), dataset.attrs["T"], dataset.attrs["middle"]
    losses = plots.with_seeds(dataset.loss.isel(run=0)).sel(epoch=slice(None, epoch))
    earlier = losses.mean("seed").sel(epoch=slice(None, epoch - 1))
    for e, line in enumerate(earlier):
        shown = 0.15 + 0.35 * (e + 1) / len(earlier)
        axes.plot(dataset.age, line, color=plots.RUN, alpha=shown, linewidth=1)
    pair = {f"{run}, epoch {epoch}": (losses.sel(epoch=epoch), plots.RUN)}
    if control and np.isfinite(dataset.gain.sel(control=control, epoch=epoch)):
        at = {"control": control, "epoch": epoch}
        own, other = (
            plots.with_seeds(dataset[name].sel(at)) for name in ("run_loss", "control_loss")
        )
        pair = {f"{run}, epoch {epoch}": (own, plots.RUN)}
        pair[f"{control}, at equal age and time"] = (other, colour)
        _shade(axes, dataset.age.values, own.mean("seed"), other.mean("seed"), dataset.sel(at))
    for name, (each, shade) in pair.items():
        plots.line(axes, dataset.age, each, shade, name, 2)
    if len(earlier):
        axes.plot([], [], color=plots.RUN, alpha=0.35, linewidth=1, label=f"{run}, epochs before")
    axes.set(
        xlabel="episodes since the document was trained on (its turn comes after "
        f"{ages.turn(dataset)})",
        ylabel="mean loss (nats/token)",
        xlim=(0.5, T * (1.25 if len(pair) > 1 else 1) + 0.5),
    )
    axes.set_xticks(sorted({1, middle, T}))
    # Losses of early epochs may be so high that the last one's would be a line at the bottom.
    low, high = (float(f([line for line, _ in pair.values()])) for f in (np.nanmin, np.nanmax))
    axes.set_ylim(low - 0.15 * (high - low), min(axes.get_ylim()[1], high + 1.2 * (high - low)))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def _shade(
    axes: Axes, age: stats.Floats, own: xr.DataArray, other: xr.DataArray, found: xr.Dataset
) -> None:
    """The areas between the lines, and an arrow at the two ages that are compared."""
    from matplotlib.patheffects import withStroke

    above = (own > other).values
    for where, name in ((above, "excess"), (~above, "gain")):
        _, colour = PARTS[name]
        axes.fill_between(
            age, own, other, where=where, interpolate=True, color=colour, alpha=0.25, linewidth=0
        )
    for name, place in (("excess", found.attrs["middle"]), ("gain", found.attrs["T"])):
        label, colour = PARTS[name]
        ends = [float(line.sel(age=place)) for line in (own, other)]
        arrow = {"arrowstyle": "<->", "color": colour, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.5}
        axes.annotate("", (place, ends[0]), (place, ends[1]), arrowprops=arrow)
        beside = name == "gain"  # the other stands below, clear of both lines
        axes.annotate(
            f"{label}\n{float(found[name]):+.2f} nats",
            (place, sum(ends) / 2 if beside else min(ends)),
            (5, 0) if beside else (0, -6),
            textcoords="offset points",
            ha="left" if beside else "center",
            va="center" if beside else "top",
            fontweight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white", alpha=0.8)],
        )


def _parts(axes: Axes, found: xr.Dataset) -> None:
    """The three numbers with their intervals; each seed a point."""
    for x, (name, (_, colour)) in enumerate(PARTS.items()):
        one = estimate.get(found, name)
        plots.points(axes, x, one, "o", color=colour)
    plots.zero(axes)
    over = "95% over" if found.attrs["unit"].endswith("seeds") else "spread over"
    axes.set(title=f"nats, {over}\n{found.attrs['unit']}", xlim=(-0.5, 2.5))
    axes.set_xticks(range(3), ["excess", "gain", "both"])
