"""What training on one document does to the loss of another: all pairs, from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recovery_probe import Analysis, Missing, stats
from recovery_probe.analyze import estimate, groups, plots, words
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.needs import RUN, checkpoints, once_an_epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

NATS = {"units": "nats"}


@dataclass(frozen=True)
class PairwiseRecovery(Analysis):
    """From the checkpoint after each of `episodes` episodes, M updates on document i, with the
    run's optimizer in a fresh state; then the drop of the loss of every document j, held-out ones
    too, in nats (paper, section 4.2 and figure 8b). The weights are put back in place between
    documents.

    loss_drop (run, episodes_done, document, other): document i is trained on, other j is looked at;
    held-out documents come last. And, all (run, episodes_done): own, mean drop of the document
    itself; others, of the other trained documents; held_out, of held-out ones; more_than_held_out,
    others minus held_out, the interval over both; near_minus_far, of a document's two neighbours
    minus of those half a cycle away; symmetry, correlation of drop(i, j) and
    drop(j, i), with the p-value of a Mantel test. lag_drop (run, episodes_done, lag): mean by
    signed cyclic lag j - i. Intervals are 95% studentised bootstraps over documents i.

    Raises `Missing` unless `from_checkpoint`, or without such a checkpoint.
    """

    # after how many episodes, of those that have a checkpoint; the last when not given
    episodes: tuple[int, ...] = ()
    # run the model again from checkpoints, which takes torch and time
    from_checkpoint: bool = False

    name = "pairwise_recovery"
    question = "Does training on one document bring back another, and which?"
    null = """What helps a trained document helps a held-out one as much, and the drop does not
    depend on the lag. For the symmetry: any order of the documents gives as strong a
    correlation."""
    blind_spot = """To first order the drop is the learning rate times the inner product of two
    gradients, the same both ways: a symmetric map is expected of any network and small steps. Held-
    out documents were never learned and forgotten, so that they may have less to regain. The
    updates start at one checkpoint, where the last documents are still fresh."""
    needs = (RUN, once_an_epoch, checkpoints())

    def compute(self, *runs: Run) -> xr.Dataset:
        known = groups.shared_checkpoints(runs)
        times = list(self.episodes) or known[-1:]
        for time in times:
            if time not in known:
                raise Missing(
                    f"{runs[0].path}: no checkpoint after {time} episodes; there are some after "
                    f"{', '.join(map(str, known))}"
                )

        def of_run(run: Run) -> xr.Dataset:
            return xr.concat([_numbers(drops(run, time), run) for time in times], "episodes_done")

        return groups.beside(
            runs,
            of_run,
            unit="documents",
            interval="95% studentised bootstrap over documents; of more_than_held_out, over both",
            p="Mantel test, two-sided, 999 orders of the documents",
        ).assign_coords(episodes_done=times)

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

    def verdict(self, dataset: xr.Dataset) -> str:
        last = dataset.isel(episodes_done=-1)
        clauses = words.by_run(last, _clause)
        return f"After {last.episodes_done.item()} episodes. {'. '.join(clauses)}."


def _clause(part: xr.Dataset) -> str:
    more, near, symmetry = (
        estimate.get(part, name) for name in ("more_than_held_out", "near_minus_far", "symmetry")
    )
    said = more.against_zero(
        f"more than held-out ones, {more.caveat}",
        f"less than held-out ones, {more.caveat}",
        "no difference can be told",
    )
    return (
        f"training on one trained document lowers the loss of another by {more} nats more than "
        f"that of a held-out one ({said}), and those of its neighbours by {near} nats more than "
        f"half a cycle off; the map is symmetric with correlation {symmetry.with_test()}"
    )


def drops(run: Run, episodes_done: int) -> stats.Floats:
    """(T, T + H): drop of the loss of each document, nats, after M updates on each of the first T,
    always from the checkpoint after `episodes_done` episodes."""
    from tqdm import tqdm

    from recovery_probe.machine import reproducible
    from recovery_probe.training import Training

    training = Training.at(run, episodes_done)
    start, rows = training.state(), []
    with reproducible(training.model.device):
        before = training.evaluate()
        for document in tqdm(
            range(training.timeline.documents), desc="pairwise recovery", disable=None
        ):
            training.fresh_optimizer()
            for step in training.steps_on(document, f"dropout of document {document}"):
                training.optimizer.zero_grad()
                training.model.losses(step.inputs).sum().backward()
                training.optimizer.step()
            rows.append(before - training.evaluate())
            training.restore(start)
    return np.stack(rows)


def _numbers(drop: stats.Floats, run: Run) -> xr.Dataset:
    """What the class describes, of one (T, T + H) map."""
    T = len(drop)
    rng = run.rng("bootstrap")
    square, held = drop[:, :T], drop[:, T:]
    others = np.where(np.eye(T, dtype=bool), np.nan, square)
    mean_others, mean_held = stats.mean_of_counted(others), stats.mean_of_counted(held)
    half = (T - 1) // 2
    lags = np.array([lag for lag in range(-half, T // 2 + 1) if lag])
    dataset = xr.Dataset(
        {"loss_drop": (("document", "other"), drop, NATS)},
        coords={
            "document": np.arange(T),
            "other": np.arange(drop.shape[1]),
            "is_held_out": ("other", np.arange(drop.shape[1]) >= T),
            "lag": lags,
        },
    )
    symmetry, p = stats.mantel(others, others.T, rng)
    estimate.put(dataset, "symmetry", (), Estimate(symmetry, p=p))
    for name, dims, each in (
        ("own", (), np.diagonal(square)),
        ("others", (), mean_others),
        ("held_out", (), mean_held),
        ("lag_drop", ("lag",), np.stack([stats.at_lag(square, lag) for lag in lags], axis=1)),
        ("near_minus_far", (), stats.near_minus_far(square)),
    ):
        estimate.put(dataset, name, dims, estimate.of_mean(each, rng), **NATS)

    def excess(i: stats.Ints) -> stats.Floats:
        """Of documents (resamples, T), over held-out ones drawn anew too."""
        j = rng.integers(max(1, held.shape[1]), size=(len(i), held.shape[1]))
        away = held[i[:, :, None], j[:, None, :]] if held.size else np.empty((*i.shape, 0))
        return stats.mean_of_counted(mean_others[i] - stats.mean_of_counted(away))

    low, high = stats.bootstrap_interval(excess, T, rng)
    if held.shape[1] < 3:  # no interval of two held-out documents
        low = high = np.array(np.nan)
    value = dataset.others.values - dataset.held_out.values
    estimate.put(dataset, "more_than_held_out", (), Estimate(value, low, high), **NATS)
    return dataset
