"""Is the recovery of a document more than general improvement? Differences in differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from einops import rearrange

from recovery_probe import Analysis, Missing, stats
from recovery_probe.analyze import estimate, groups, plots
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.needs import RUN, evenly

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

HELD_OUT = "held-out"
NATS = {"units": "nats"}


@dataclass(frozen=True)
class OrderVsDrift(Analysis):
    """Between two episodes on a document, take the last third of the wait, and how far the loss
    falls in it (nats, positive for a fall).

    fall (run, epoch, document): of the document itself; held_out_fall (epoch, document): of the
    mean held-out document over the same episodes of the run; for a control, of the same document
    over the same episodes, NaN, and counted in left_out (run), where it trains on it then.
    mean_fall (run, epoch), mean_held_out_fall (epoch): means over documents.

    effect (against, epoch): the run's fall minus that of what it is held against, mean over
    documents: positive when documents fall by more. overall (against): over all epochs; size
    (against): the same in standard deviations of documents. Against: `held-out` and each control.
    Intervals are 95% percentile bootstraps over documents, and over held-out ones at once.

    Raises `Missing` when no document has come back yet, or with nothing to hold it against.
    """

    name = "order_vs_drift"
    question = "Does a document recover by more than everything else improves at that time?"
    null = """If all that happens is general improvement (or decay), trained and held-out documents
    change alike over the same episodes, and so does the document in the control: 0."""
    blind_spot = """Held-out documents were never learned, so that they have nothing to recover:
    what trained documents have in common with them is taken away, forgetting is not. Against the
    control, documents are compared at other distances from their last episode. The control's cases
    in which it trains on the document in that stretch are left out and counted. With one run the
    unit is the document, and all documents share its trajectory."""
    needs = (RUN, evenly)

    def compute(self, *runs: Run) -> xr.Dataset:
        run, *controls = runs
        T, names = run.config.documents.count, groups.labels(runs)
        held_losses = run.losses.values[:, T:]
        if not held_losses.size and not controls:
            raise Missing(
                f"{run.path}: no document was held out and there is no control: train with "
                "--documents.held_out 5 or --control shuffled"
            )
        turns = stats.visits(run.schedule.values, T)
        before = turns[:, 1:].T  # (epoch, document): episodes done right before the next episode
        start = before - (before - turns[:, :-1].T) // 3
        falls = np.stack(
            [stats.fall(r.losses.values, r.schedule.values, start, before) for r in runs]
        )
        if not np.isfinite(falls[0]).any():
            raise Missing(
                f"{run.path}: {run.episodes_done} episodes: no document has come back yet"
            )
        held = held_losses[start] - held_losses[before]  # (epoch, document, held-out document)
        mean_held = stats.mean_of_counted(held)
        others = {HELD_OUT: held} if held_losses.size else {}
        others |= dict(zip(names[1:], falls[1:, ..., None], strict=True))
        dataset = xr.Dataset(
            {
                "fall": (("run", "epoch", "document"), falls, NATS),
                "mean_fall": (("run", "epoch"), stats.mean_of_counted(falls), NATS),
                "held_out_fall": (("epoch", "document"), mean_held, NATS),
                "mean_held_out_fall": ("epoch", stats.mean_of_counted(mean_held), NATS),
                "left_out": ("run", np.isnan(falls).sum(axis=(1, 2)), {"of_seeds": "sum"}),
            },
            coords={
                "run": names,
                "epoch": np.arange(1, len(before) + 1),
                "document": np.arange(T),
                "against": list(others),
            },
            attrs={
                "unit": "documents",
                "interval": "95% percentile bootstrap over documents, and over held-out ones",
                **groups.compared(runs),
            },
        )
        effects = np.stack(
            [_effects(falls[0][..., None] - other, run) for other in others.values()]
        )
        # An estimate of each: (against, epochs and all of them, mean and size).
        found = Estimate(
            *rearrange(effects, "against bound epoch kind -> bound against epoch kind")
        )
        estimate.put(dataset, "effect", ("against", "epoch"), found[:, :-1, 0], **NATS)
        estimate.put(dataset, "overall", "against", found[:, -1, 0], **NATS)
        estimate.put(dataset, "size", "against", found[:, -1, 1])
        return dataset

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Falls by epoch of the run, the held-out documents and the controls; and the effects."""
        fig, (top, bottom) = plots.figure(rows=2)
        colours = {HELD_OUT: plots.HELD_OUT}
        for name, part, colour in plots.by_run(dataset):
            top.plot(part.epoch, part.mean_fall, "o-", color=colour, label=name, ms=4)
            colours[name] = colour
        if np.isfinite(dataset.mean_held_out_fall).any():
            mean = dataset.mean_held_out_fall
            top.plot(dataset.epoch, mean, "s--", color=plots.HELD_OUT, label=HELD_OUT, ms=4)
        top.set(ylabel="fall (nats/token)", title="fall of the loss in the last third of the wait")
        for i, name in enumerate(dataset.against.values):
            effect = estimate.get(dataset, "effect", against=name)
            x = dataset.epoch + 0.12 * (i - (dataset.sizes["against"] - 1) / 2)
            plots.points(bottom, x, effect, "o", color=colours[name], label=f"against {name}")
        bottom.set_ylabel("difference in falls (nats/token)")
        for axes in (top, bottom):
            plots.zero(axes)
            axes.set(xlabel="epoch", xticks=dataset.epoch.values)
            axes.legend()
        return fig

    def summary(self, dataset: xr.Dataset) -> dict[str, Any]:
        """Effects, how many cases the control leaves out, and the verdict."""
        left_out = {str(name): int(dataset.left_out.sel(run=name)) for name in dataset.run.values}
        return {"left_out": left_out, **super().summary(dataset)}

    def verdict(self, dataset: xr.Dataset) -> str:
        clauses = []
        for name in dataset.against.values:
            overall = estimate.get(dataset, "overall", against=name)
            size = float(dataset["size"].sel(against=name))
            sds = "standard deviations"
            sds = f"{sds} not defined" if np.isnan(size) else f"{size:.1f} {sds}"
            said = overall.against_zero(
                f"more than drift, {overall.caveat}",
                "less than what it is held against",
                "no difference can be told",
            )
            clauses.append(f"{overall} nats further than {name} ({sds}): {said}")
        return (
            "In the last third of the wait for their turn the documents' losses fall "
            f"{'; '.join(clauses)}. The unit is {dataset.attrs['unit']}."
        )


def _effects(difference: stats.Floats, run: Run) -> stats.Floats:
    """Of differences (epoch, document, held-out document): value, low and high, (3, epoch + 1, 2):
    their mean, and the mean in standard deviations of documents; the last row is that of the
    means over epochs."""
    rng = run.rng("bootstrap")
    rows = [*difference, stats.mean_of_counted(difference, axis=0)]
    return np.stack([stats.effect(row, rng) for row in rows], axis=1)
