"""How far apart rounding alone drives two runs: below that no difference means anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recovery_probe import Analysis, stats
from recovery_probe.analyze import groups, plots
from recovery_probe.analyze.needs import RUN, twin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

NATS = {"units": "nats per token"}


@dataclass(frozen=True)
class TwinDistance(Analysis):
    """A run beside its twin: the same training from weights changed by one unit in the last place.

    distance (other, episodes_done): mean over the documents trained on of |loss of the run - loss
    of the other|, nats, of `twin` and of each control; NaN where one of the two has not got to.
    furthest (other): its largest value. begins (epoch): episodes done as an epoch begins.

    Raises `Missing` without a twin.
    """

    name = "twin_distance"
    question = "How far apart do two runs drift that differ by rounding alone?"
    null = """None is tested: this is the floor of the others' numbers. Without chaos the distance
    stays near the size of a last digit, 1e-7 of a loss."""
    blind_spot = """One twin is one draw of the chaos: another may drift further. Distances of
    losses say nothing about where the weights are, and a mean over documents hides one that is
    far."""
    needs = (RUN, twin)

    def compute(self, *runs: Run) -> xr.Dataset:
        run, *controls = runs
        T = run.config.documents.count
        others = {"twin": run.twins[0], **dict(zip(groups.labels(runs)[1:], controls, strict=True))}

        def distance(other: Run) -> stats.Floats:
            apart = np.abs(run.losses.values[:, :T] - other.losses.values[:, :T])
            return np.asarray(apart.mean(axis=1))

        distances = np.stack([distance(other) for other in others.values()])
        reached = np.where(np.isfinite(distances), distances, -np.inf).max(axis=1)
        return xr.Dataset(
            {
                "distance": (("other", "episodes_done"), distances, NATS),
                "furthest": ("other", reached, NATS),
                "begins": ("epoch", run.timeline.boundaries),
            },
            coords={"other": list(others), "episodes_done": np.arange(distances.shape[1])},
            attrs={"unit": "one run", "T": T, **groups.compared([run, run.twins[0]])},
        )

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """The distance by episode, on a logarithmic scale; a line at each epoch."""
        fig, (axes,) = plots.figure(width=1.5 * plots.COLUMN)
        for i, other in enumerate(dataset.other.values):
            values = dataset.distance.sel(other=other)
            axes.plot(dataset.episodes_done, values, color=plots.colour(i), label=f"{other}")
        for whole in dataset.begins.values:
            axes.axvline(whole, color=plots.HELD_OUT, linewidth=0.6, linestyle=":")
        axes.set(
            xlabel="episodes done (dotted: epochs)",
            ylabel="|loss - loss of the run| (nats/token)",
            yscale="log",
            title="mean over documents: how far others are from the run",
        )
        axes.legend()
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        nearest, *controls = (float(f) for f in dataset.furthest)
        if np.isnan(nearest):
            return "The distance is not defined: the two have no episode in common."
        text = f"Rounding alone moves the mean loss of a document by up to {nearest:.2g} nats."
        for name, far in zip(dataset.other.values[1:], controls, strict=True):
            text += f" The control {name} is up to {far:.2g} nats away."
        return text
