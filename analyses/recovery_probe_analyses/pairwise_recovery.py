"""What training on one document does to the loss of another: all pairs, from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recovery_probe import Analysis, Missing, stats
from recovery_probe.analyze import document_pairs, estimate, groups, plots, words
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.needs import RUN, checkpoints, once_an_epoch
from recovery_probe.saying import along

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

NATS, UNDEFINED = {"units": "nats"}, document_pairs.UNDEFINED
# What a verdict says.
MAIN = ("others", "held_out", "more_than_held_out", "near_minus_far", "distance_r", "reciprocity")


@dataclass(frozen=True)
class PairwiseRecovery(Analysis):
    """From the checkpoint after each of `episodes` episodes, M updates on document i, with the
    run's optimizer in a fresh state; then the drop of the loss of every document j, held-out ones
    too, in nats (paper, section 4.2 and figure 8b). The weights are put back in place between
    documents.

    loss_drop (run, episodes_done, document, other): document is trained on, other is looked at;
    they are numbered in the order of the cycle (of a run without one, as they are), and held-out
    ones come last. And, all (run, episodes_done), with intervals over documents, as trained on and
    as looked at:

    - own: mean drop of the document itself; others, of another trained document; held_out, of a
      held-out one; more_than_held_out: others minus held_out;
    - lag_drop (…, lag): mean by signed cyclic lag from the document to the other;
    - near_minus_far: mean drop of neighbours minus that of documents half a cycle apart, after
      document effects: what each gives, what each gains, and the product of two strengths a_i b_j.
      The interval is over pairs, which have then no more in common;
    - distance_r: correlation of drop and cyclic distance after document effects, the straight lag
      |i - j| and how far apart the documents were last trained on; with a p-value over orders of
      the documents (Mantel, Freedman and Lane), and distance_r_before: as the drops are;
    - reciprocity: correlation of drop(i, j) and drop(j, i) after document effects;
    - variance (…, component): of the social-relations model, nats²: of what documents give (row),
      of what they gain (column), the covariance of the two in a document (row_and_column), of the
      rest, and the covariance of the rests of (i, j) and (j, i) (pair). Unbiased, so that one of
      nothing may be below 0.

    Run minus control, of the same documents: NAME_difference (control, episodes_done) of each but
    lag_drop and variance. left_out: how many documents, held-out ones too, lack some drop.

    Raises `Missing` unless `from_checkpoint`, or without such a checkpoint.
    """

    # after how many episodes, of those that have a checkpoint; the last when not given
    episodes: tuple[int, ...] = ()
    # run the model again from checkpoints, which takes torch and time
    from_checkpoint: bool = False

    name = "pairwise_recovery"
    question = "Does training on one document bring back another, and which?"
    null = """What helps a trained document helps a held-out one as much. But for what each document
    gives and gains, the drop does not depend on the lag, nor drop(i, j) on drop(j, i). Run minus
    control is 0."""
    blind_spot = """To first order the drop is the learning rate times the inner product of two
    gradients, the same both ways: a symmetric map is expected of any network and small steps. Plain
    least squares of documents that share a component, a fixed kernel in which no feature can be
    learned, gives drops that are symmetric and positive for neighbours too: features that training
    aligns (H1) and a shared state that comes back (H2) are not told apart here. Held-out documents
    were never learned and forgotten, so that they may have less to regain. The updates start at one
    checkpoint, where the last documents are still fresh. The documents of one run share its
    weights: intervals say how much documents differ. Effects of documents that are neither sums nor
    products are left in."""
    shown = ("reciprocity", "correlation of the two ways")
    paper = """Roughly symmetric: what training on i does to j, training on j does to i (section
    4.2, figure 8b)."""
    tested = "distance_r"
    needs = (RUN, once_an_epoch, checkpoints())

    def compute(self, *runs: Run) -> xr.Dataset:
        known = groups.shared_checkpoints(runs)
        times, T = list(self.episodes) or known[-1:], runs[0].config.documents.count
        for time in times:
            if time not in known:
                raise Missing(
                    f"{runs[0].path}: no checkpoint after {time} episodes; there are some after "
                    f"{', '.join(map(str, known))}"
                )
        order = stats.cycle(runs[0].schedule.values, T)
        drop = np.stack([[drops(run, time) for time in times] for run in runs])
        return _numbers(document_pairs.in_order(drop, order), runs, times, order)

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """At the last checkpoint: maps of drops, and drop by signed lag beside held-out ones."""
        last, T = dataset.isel(episodes_done=-1), dataset.sizes["document"]
        fig, panels, below = plots.above(dataset, "lag", height=2.6)
        shown = last.loss_drop.where(last.document != last.other)
        top = float(abs(shown).max())
        plots.maps(
            fig,
            panels,
            shown,
            dataset.run.values,
            label="drop of the loss (nats)",
            x="looked at (right of the line: held out)",
            y="document trained on",
            vmin=-top,
            vmax=top,
        )
        for axes in panels:
            axes.axvline(T - 0.5, color="black", linewidth=0.8)
        axes = below["lag"]
        for name, part, colour in plots.by_run(last):
            drop = estimate.get(part, "lag_drop")
            plots.points(axes, dataset.lag, drop, color=colour, ms=3, label=name)
            label = f"{name}: held-out documents"
            axes.axhline(part.held_out, color=colour, linestyle="--", linewidth=0.9, label=label)
        plots.zero(axes)
        axes.set(
            xlabel="signed lag (documents): looked at minus trained on",
            ylabel="drop of the loss (nats)",
            title=f"after {last.episodes_done.item()} episodes; the diagonal is left out",
        )
        axes.locator_params(axis="x", integer=True)
        fig.legend(loc="outside lower center", ncols=2)
        return fig

    def agrees(self, dataset: xr.Dataset) -> bool | None:
        """Whether the two ways go together."""
        last = dataset.isel(run=0, episodes_done=-1)
        return estimate.get(last, "reciprocity").agrees(1, 0.05)

    def verdict(self, dataset: xr.Dataset) -> str:
        last = dataset.isel(episodes_done=-1)
        clauses = words.by_run(last, _clause)
        text = f"After {last.episodes_done.item()} episodes. {'. '.join(clauses)}."
        for control in dataset.control.values:
            others, held_out, more, near, r, reciprocity = (
                estimate.get(last, f"{name}_difference", control=control) for name in MAIN
            )
            text += (
                f" Run minus control {control}: others {others}, held-out ones {held_out}, the "
                f"difference of these {more}, neighbours {near}; correlation with distance "
                f"{r.with_test(undefined=UNDEFINED)}, of either way {reciprocity}."
            )
        return text + document_pairs.said_of(dataset)


def _clause(part: xr.Dataset) -> str:
    others, held_out, more, near, r, reciprocity = (estimate.get(part, name) for name in MAIN)
    return (
        f"training on one trained document lowers the loss of another by {others} nats and that of "
        f"a held-out one by {held_out}, a difference of {more}; after document effects that of "
        f"its neighbours falls by {near} nats more than half a cycle off, drop and distance "
        f"correlate by {r.with_test(undefined=UNDEFINED)}, and the drops of two documents, either "
        f"way, by {reciprocity.with_test(undefined=UNDEFINED)}"
    )


def drops(run: Run, episodes_done: int) -> stats.Floats:
    """(T, T + H): drop of the loss of each document, nats, after M updates on each of the first T,
    always from the checkpoint after `episodes_done` episodes."""
    from recovery_probe.machine import reproducible
    from recovery_probe.training import Training

    training = Training.at(run, episodes_done)
    start, rows, last = training.state(), [], training.timeline.episodes - 1
    with reproducible(training.model.device):
        before = training.evaluate()
        T = training.timeline.documents
        for document in along(range(T), "pairwise recovery", T, "documents"):
            training.fresh_optimizer()
            purpose = f"dropout of document {document}"
            for step in training.steps_on(document, purpose, min(episodes_done, last)):
                training.optimizer.zero_grad()
                training.model.losses(step.inputs).sum().backward()
                training.optimizer.step()
            rows.append(before - training.evaluate())
            training.restore(start)
    return np.stack(rows)


def _numbers(
    drop: stats.Floats, runs: Sequence[Run], times: Sequence[int], order: stats.Ints
) -> xr.Dataset:
    """Of (run, episodes_done, T, T + H) maps in the order of the cycle."""
    T = len(order)
    half, dims = (T - 1) // 2, ("episodes_done",)
    lags = np.array([lag for lag in range(-half, T // 2 + 1) if lag])
    rows, held_out, left_out = document_pairs.counted(drop)
    dataset = xr.Dataset(
        {
            "loss_drop": (("run", *dims, "document", "other"), drop, NATS),
            "left_out": ((), left_out, {"of_seeds": "sum"}),
        },
        coords={
            "run": groups.labels(runs),
            "control": groups.labels(runs)[1:],
            "episodes_done": list(times),
            "document": np.arange(T),
            "other": np.arange(drop.shape[-1]),
            "is_held_out": ("other", np.arange(drop.shape[-1]) >= T),
            "lag": lags,
            "component": ["row", "column", "row_and_column", "rest", "pair"],
        },
        attrs={
            "T": T,
            "unit": "documents",
            "interval": document_pairs.INTERVALS,
            "p": document_pairs.TEST.format(
                "orders of the documents, for reciprocity of the pairs", "times"
            ),
            **groups.compared(runs),
        },
    )
    square, crossed = drop[..., rows[:, None], rows], drop[..., rows[:, None], held_out]

    def over_documents(own: stats.Floats) -> stats.Interval:
        return stats.studentised_interval(np.moveaxis(own, -1, 0), runs[0].rng("bootstrap"))

    own = np.diagonal(square, axis1=-2, axis2=-1)
    document_pairs.put(dataset, dims, "own", over_documents, own, units="nats")
    document_pairs.put(dataset, dims, "others", stats.mean_of_pairs, square, units="nats")
    document_pairs.put(dataset, dims, "held_out", stats.mean_of_crossed, crossed, units="nats")
    more = stats.pairs_minus_crossed
    document_pairs.put(
        dataset, dims, "more_than_held_out", more, square, crossed, null=True, units="nats"
    )
    document_pairs.put_places(dataset, dims, square, runs, rows, order, units="nats")
    at_lag = (rows - rows[:, None]) % T == (lags % T)[:, None, None]
    by_lag = Estimate(*stats.means_of_classes(square, at_lag))
    estimate.put(dataset, "lag_drop", ("run", *dims, "lag"), by_lag, **NATS)
    components = np.stack(stats.variances(stats.effects(square)), axis=-1)
    dataset["variance"] = (("run", *dims, "component"), components, {"units": "nats²"})
    document_pairs.put_reciprocity(dataset, dims, square, runs[0].rng("pairs"))
    return dataset
