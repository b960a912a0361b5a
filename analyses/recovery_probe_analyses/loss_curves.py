"""Loss of a focal document, shift-averaged loss, held-out loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import xarray as xr
from annotated_types import Ge

from recovery_probe import Analysis, InputError, stats
from recovery_probe.analyze import estimate, groups, plots, words
from recovery_probe.analyze.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recovery_probe import Run


@dataclass(frozen=True)
class LossCurves(Analysis):
    """Losses to draw, nats per token.

    focal (run, episodes_done) is the loss of document `focal`. before (run, visit): the episodes
    done right before each episode on it, -1 for none; trained and held_out (run, episodes_done) are
    means over those documents. aligned (run, shifted) is the shift-averaged loss (paper, A.4), NaN
    unless the schedule is periodic, with a 95% bootstrap over documents.

    Raises `InputError` for a focal document that is not there.
    """

    # the document to follow; the middle one of those that come back when not given: the first may
    # come first in a shuffled control too, so that the two look alike
    focal: Annotated[int, Ge(0)] | None = None

    name = "loss_curves"
    question = "How does the loss of a document rise and fall between two episodes on it?"
    null = """Plain forgetting: the loss jumps down at each episode on the document, then climbs or
    stays until the next one."""
    blind_spot = """One focal document is one case, and a smooth average can hide that documents
    differ. A fall that the held-out documents share is general improvement, not anticipation."""

    def compute(self, *runs: Run) -> xr.Dataset:
        if self.focal is None:
            return replace(self, focal=_middle(runs[0])).compute(*runs)
        dataset = super().compute(*runs)
        begins = runs[0].timeline.boundaries
        dataset["begins"] = ("epoch", begins, {"description": "episodes done as an epoch begins"})
        dataset["before"] = dataset.before.fillna(-1).astype(int)  # of fewer visits
        return dataset

    def of_run(self, run: Run, episodes: int) -> xr.Dataset:
        T, focal = run.config.documents.count, self.focal
        assert focal is not None
        if not 0 <= focal < T:
            raise InputError(f"focal = {focal}: the documents trained on are 0 to {T - 1}")
        losses, schedule = run.losses.values, run.schedule.values
        before = stats.turns(schedule, T)[focal]
        dataset = xr.Dataset(
            {
                "focal": ("episodes_done", losses[:, focal]),
                "before": ("visit", before),
                "trained": ("episodes_done", losses[:, :T].mean(axis=1)),
                "held_out": ("episodes_done", stats.mean_of_counted(losses[:, T:])),
            },
            coords={"episodes_done": np.arange(len(losses)), "visit": 1 + np.arange(len(before))},
            attrs={
                "focal": focal,
                "focal_name": str(run.record.name.values[focal]),
                "units": "nats per token",
                "interval": "95% bootstrap over documents",
            },
        )
        aligned = Estimate(*np.full((3, len(losses) - T + 1), np.nan))
        if stats.is_periodic(schedule, T):
            each = stats.shift_aligned(losses[:, :T], schedule).T  # (T, rows)
            bounds = stats.bootstrap_interval(
                lambda drawn: stats.resampled_means(each, drawn),
                T,
                run.rng("bootstrap"),
            )
            aligned = Estimate(each.mean(axis=0), *bounds)
        estimate.put(dataset, "aligned", "shifted", aligned)
        return dataset.assign_coords(shifted=np.arange(len(aligned.value)))

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Three panels: the focal document, the shift-averaged loss, the held-out documents."""
        fig, (top, middle, bottom) = plots.figure(rows=3, width=2 * plots.COLUMN, height=2.0)
        T = dataset.attrs["T"]
        for name, part, colour in plots.by_run(dataset):
            top.plot(part.episodes_done, part.focal, color=colour, label=name)
            before = part.before.values[part.before.values >= 0]
            top.plot(before, part.focal.values[before], "o", color=colour, markersize=4)
            _draw_mean(middle, part, T, name, colour)
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
            axes.set_xticks(dataset.begins.values)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper right")
        return fig

    def summary(self, dataset: xr.Dataset) -> dict[str, Any]:
        """Untrained and last losses, by run, and the verdict."""
        return {
            "verdict": self.verdict(dataset),
            "focal_document": dataset.attrs["focal"],
            "focal_name": dataset.attrs["focal_name"],
            "runs": {
                part.run.item(): {
                    k: _ends(part[k].values) for k in ("focal", "trained", "held_out")
                }
                for part in groups.apart(dataset)
            },
        }

    def verdict(self, dataset: xr.Dataset) -> str:
        T = dataset.attrs["T"]

        def clause(part: xr.Dataset) -> str:
            aligned = part.aligned.values
            turns = np.flatnonzero(np.isfinite(aligned[::T]))[1:] * T  # right before episodes
            held, trained = _ends(part.held_out.values), _ends(part.trained.values)
            text = (
                f"the mean loss of documents goes from {_said(trained['untrained'])} untrained to "
                f"{_said(trained['last'])} at last"
            )
            if held["untrained"] is not None:
                text += f" (held out: {_said(held['untrained'])} to {_said(held['last'])})"
            if len(turns):
                wait = aligned[turns[-1] - T + 1 : turns[-1] + 1]
                text += (
                    f"; in the last whole wait the averaged loss rises from {wait[0]:.2f} to "
                    f"{wait.max():.2f} and is {wait[-1]:.2f} when the turn comes"
                )
            return text

        return "; ".join(words.by_run(dataset, clause)) + " (nats per token)."


def _middle(run: Run) -> int:
    """Of the documents that come twice or more, the middle one; of all where none does."""
    T = run.config.documents.count
    back = np.flatnonzero(np.bincount(run.schedule.values, minlength=T) > 1)
    return int(back[len(back) // 2]) if len(back) else T // 2


def _draw_mean(axes: Axes, part: xr.Dataset, T: int, name: str, colour: str) -> None:
    """The shift-averaged loss with a dot at each epoch, or the mean of documents where there is
    none."""
    aligned, shifted = estimate.get(part, "aligned"), part.shifted
    if np.isnan(aligned.value).all():
        label = f"{name}: mean over documents, not aligned"
        axes.plot(part.episodes_done, part.trained, color=colour, linestyle="--", label=label)
        return
    axes.plot(shifted, aligned.value, color=colour, label=f"{name}: shift-averaged")
    plots.band(axes, shifted, aligned, color=colour, alpha=0.2, label="95% over documents")
    axes.plot(shifted[::T], aligned.value[::T], "o", color=colour, markersize=4)


def _ends(losses: stats.Floats) -> dict[str, float | None]:
    counted = losses[np.isfinite(losses)]
    last = counted[-1] if len(counted) else np.nan
    return {"untrained": words.number(losses[0]), "last": words.number(last)}


def _said(loss: float | None) -> str:
    return "not defined" if loss is None else f"{loss:.2f}"
