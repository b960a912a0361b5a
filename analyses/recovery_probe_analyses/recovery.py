"""Recovery score by epoch, in both readings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import xarray as xr
from annotated_types import Ge

from recovery_probe import Analysis, stats
from recovery_probe.analyze import estimate, groups, plots
from recovery_probe.analyze.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

UNITS = "share of forgotten loss"
MEANING = str({stats.COUNTED: "counts", **stats.REASONS})


@dataclass(frozen=True)
class Recovery(Analysis):
    """RS(n) = (l_max(n) - l_before(n)) / (l_max(n) - l_after(n-1)), n = 1 … E-1 (paper, section 3).

    `curve`: of the document-averaged shift-aligned loss, the reading that the published bars
    match; defined for a periodic schedule alone. `per_document`: the mean over documents of each
    one's own score, as the text says. Intervals are 95% bootstraps over documents: studentised for
    means, percentile for the curve.
    A score is left out, and its reason counted, when less than `min_forgetting` nats were
    forgotten. `difference` is run minus control, per document, over documents that count in both.

    score (run, reading, epoch), periodic (run); document_score and reason (run, epoch, document),
    curve_reason (run, epoch); difference (control, epoch).
    """

    # leave out a score when less than this was forgotten, nats
    min_forgetting: Annotated[float, Ge(0)] = stats.MIN_FORGETTING

    name = "recovery"
    question = "How much of what was forgotten comes back before a document is seen again?"
    null = """Without anticipation the loss stays where forgetting took it: a `curve` near 0, and a
    score near that of the shuffled control. `per_document` is not 0 there: each document has its
    own maximum, which noise alone puts .02 to .5 above its end. That is its floor, of which the
    control shows its own."""
    blind_spot = """The documents share one training trajectory: an interval over documents says how
    much they differ, not how much another seed would. General improvement late in the cycle also
    raises the score, and so does extra forgetting in mid-wait that the order itself causes:
    age_curve compares at equal age and time, and tells these apart. Plain least squares with a
    component that its documents share has such scores too. A shuffled document waits between 1 and
    2T-1 episodes (2 to 2T-2 where document 0 stays first, and waits T), and a short wait leaves
    less to forget."""
    shown = ("score, curve", "recovery score of the averaged curve")
    paper = """Much comes back: scores of .35, .73, .88 and .93 in epochs 1 to 4 (Pythia-1B, T =
    25; section 3, read off its figures)."""

    def compute(self, *runs: Run) -> xr.Dataset:
        dataset = super().compute(*runs)
        dataset = dataset.assign_coords(control=dataset.run.values[1:])
        # Another schedule may have more waits.
        dataset["reason"] = dataset.reason.fillna(stats.NO_TURN).astype(int)
        scores = dataset.document_score.transpose("document", "run", "epoch").values
        paired = scores[:, :1] - scores[:, 1:]
        difference = estimate.of_mean(paired, runs[0].rng("bootstrap"))
        difference = replace(difference, null=np.zeros(paired.shape[1:]))
        estimate.put(dataset, "difference", ("control", "epoch"), difference, units=UNITS)
        return dataset

    def of_run(self, run: Run, episodes: int) -> xr.Dataset:
        T, schedule = run.config.documents.count, run.schedule.values
        losses = run.losses.values[:, :T]
        scores, reasons = stats.recovery_per_document(losses, schedule, self.min_forgetting)
        mean = estimate.of_mean(scores.T, run.rng("bootstrap"))
        curve = Estimate(*np.full((3, len(scores)), np.nan))
        curve_reasons = np.full(len(scores), stats.NOT_REACHED)
        if periodic := stats.is_periodic(schedule, T):

            def of_curve(curve: stats.Floats) -> tuple[stats.Floats, stats.Ints]:
                return stats.recovery_of_curve(curve, T, self.min_forgetting)

            aligned = stats.shift_aligned(losses, schedule)
            value, curve_reasons = of_curve(aligned.mean(axis=1))
            bounds = stats.bootstrap_interval(
                lambda drawn: of_curve(stats.resampled_means(aligned.T, drawn))[0],
                T,
                run.rng("bootstrap"),
            )
            curve = Estimate(value, *bounds)
        by_seed = {"of_seeds": "each"}
        dataset = xr.Dataset(
            {
                "document_score": (("epoch", "document"), scores, {"units": UNITS}),
                "reason": (("epoch", "document"), reasons, {"meaning": MEANING, **by_seed}),
                "curve_reason": ("epoch", curve_reasons, by_seed),
                "periodic": periodic,
            },
            coords={"epoch": np.arange(1, len(scores) + 1), "document": np.arange(T)},
            attrs={
                "unit": "documents",
                "interval": "95% bootstrap over documents, studentised for means, percentile for "
                "the curve",
                "min_forgetting": self.min_forgetting,
            },
        ).assign_coords(reading=["curve", "per_document"])
        score = estimate.stack([curve, mean])
        estimate.put(dataset, "score", ("reading", "epoch"), score, units=UNITS)
        return dataset

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Score by epoch: filled for the curve reading, open for the per-document one."""
        fig, (axes,) = plots.figure(height=2.7)
        if not dataset.sizes["epoch"]:
            plots.note(axes, "one epoch: no document came back")
        offsets = iter(np.linspace(-0.12, 0.12, 2 * dataset.sizes["run"]))
        for name, part, colour in plots.by_run(dataset):
            for reading, form, fill, said in (
                ("curve", "o-", colour, "averaged curve"),
                ("per_document", "s--", "white", "mean over documents"),
            ):
                score, x = estimate.get(part, "score", reading=reading), part.epoch + next(offsets)
                if not np.isnan(score.value).all():
                    label = f"{name}, {said}"
                    plots.points(axes, x, score, form, color=colour, mfc=fill, label=label)
        axes.set(xlabel="epoch", ylabel="recovery score", xticks=dataset.epoch.values)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        if axes.get_legend_handles_labels()[0]:
            fig.legend(loc="outside upper left")
        return fig

    def summary(self, dataset: xr.Dataset) -> dict[str, Any]:
        """Every number, how many were left out at each epoch and why, and the verdict."""
        left_out = {
            part.run.item(): {
                "curve": _left_out(part.curve_reason)
                if part.periodic
                else "its documents have no common period",
                "per_document": _left_out(part.reason),
            }
            for part in groups.apart(dataset)
        }
        return {"left_out": left_out, **super().summary(dataset)}

    def agrees(self, dataset: xr.Dataset) -> bool | None:
        """Whether the last known score is above that of the first control."""
        difference = dataset.difference.transpose("control", "epoch").values
        known = np.flatnonzero(np.isfinite(difference[:1].ravel()))
        if not len(known):
            return None
        return estimate.get(dataset, "difference")[0, known[-1]].agrees(1, 0.05)

    def verdict(self, dataset: xr.Dataset) -> str:
        has_score = np.isfinite(dataset.document_score.values).any(axis=2)  # (run, epoch)
        if not has_score[0].any():
            return "No document came back after having been forgotten: there is no score."
        # The last epoch that all have a score of: an interrupted one is compared where it got.
        shared = has_score.all(axis=0) if has_score.all(axis=0).any() else has_score[0]
        last = dataset.isel(epoch=np.flatnonzero(shared)[-1])
        run, *controls = dataset.run.values

        def score(name: str, reading: str = "per_document") -> Estimate:
            return estimate.get(last, "score", run=name, reading=reading)

        text = f"At epoch {last.epoch.item()} the recovery score is "
        if dataset.periodic.values[0]:
            text += f"{score(run, 'curve')} for the averaged curve and "
        counted = last.reason.sel(run=run).values == stats.COUNTED
        seeds = ", all seeds together" if "seed" in dataset.reason.dims else ""
        text += (
            f"{score(run)} per document ({counted.sum()} of {counted.size} documents "
            f"count{seeds}), which noise raises: each has its own maximum."
        )
        for control in controls:
            difference = estimate.get(last, "difference", control=control)
            said = difference.decided("more than the control", "less than the control", 0.05)
            text += (
                f" The control {control} scores {score(control)} per document, which holds that "
                f"floor too; the run minus the control is {difference}: {said}."
            )
        return text


def _left_out(reasons: xr.DataArray) -> list[dict[str, int]]:
    """Of each epoch: reason -> how many have it. The averaged curve is one thing, left out or
    not."""
    by_epoch = [row.values for row in reasons.transpose("epoch", ...)]
    return [
        {text: int((row == code).sum()) for code, text in stats.REASONS.items() if code in row}
        for row in by_epoch
    ]
