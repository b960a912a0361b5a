"""How far the weights and a document's activations move in each episode."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from einops import rearrange, reduce
from numpy.typing import NDArray

from recovery_probe import Analysis, stats
from recovery_probe.analyze import estimate, plots, words
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.modules import module_groups
from recovery_probe.analyze.needs import RUN, epochs, once_an_epoch, recorded
from recovery_probe.analyze.trajectory import differences, flat, minus_controls, updates
from recovery_probe_analyses.activation_similarity import focal_document, real

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

ACTIVATION = "activation"
FEWEST = 20  # places to begin an epoch that give a p-value of .05 at the least


@dataclass(frozen=True)
class StepSizes(Analysis):
    """Sizes by episode (paper, figure 22).

    moved (run, size, episode): norm of the weights' change over the episode, from sketches, by
    group of modules; and, as `activation`, norm of the change of the focal document's final
    residual stream, all positions. path (run, group, episode): exact, the sum over the episode's
    steps of the norm of each step's update; NaN unless `weight_deltas` has every step.

    staircase (run, size): R² of the log size with a level for each epoch minus R² with a straight
    line: above 0 when it goes down by steps rather than steadily. Its null is the mean, and its p
    the share, of all places to begin an epoch (`stats.staircases`; the true one is that of the
    first document, and for the activation of the focal one where its turn is at one place in all
    epochs), which cannot be below one over their number: there is none with fewer than twenty.
    p_adjusted is corrected over the groups of weights. The episodes on the focal document itself
    do not count for its staircase (`left_out`), and leave a place less. staircase_difference
    (control, size): run minus control.
    """

    name = "step_sizes"
    tested = "staircase"
    question = """Do weights and activations settle steadily, or by a step each time the cycle
    closes?"""
    null = """Steady settling: a straight line fits the logarithm as well as a level for each epoch,
    and levels fit as well wherever an epoch is said to begin."""
    blind_spot = """Norms say how far, not where to. Documents differ, and a cycle repeats their
    differences every epoch: that is not a staircase, but can look like one that begins at any
    place. A decline that slows down hides steps, and sizes that wander as a random walk make p
    below .05 in one case of seven. A staircase may come from features that training aligns (H1) as
    well as from weights that settle under a fixed kernel (H2). Weight changes over an episode are
    norms of sketches (the error is in provenance.json); activations are stored in float16, which
    hides changes below a thousandth of their size. A difference from the control has no interval
    from one run."""
    paper = """Changes of document 1's activations go down by a staircase, those of the weights
    steadily (figure 22)."""
    needs = (
        RUN,
        recorded("weight_deltas", every_episode=True),
        recorded("residual_stream"),
        once_an_epoch,
        epochs(2),
    )

    def compute(self, *runs: Run) -> xr.Dataset:
        return minus_controls(super().compute(*runs), "staircase")

    def of_run(self, run: Run, episodes: int) -> xr.Dataset:
        T, focal = run.config.documents.count, focal_document(run)
        moved = updates(run, episodes)
        total, groups = len(moved), module_groups(moved.module)
        weights = np.stack(
            [np.linalg.norm(flat(moved, which), axis=1) for which in groups.values()]
        )
        final = run.recorder("residual_stream").final
        epochs = (final[start : start + T + 1].values for start in range(0, total, T))
        activation = np.concatenate([_changes(real(run, rows, focal)) for rows in epochs])
        # An epoch of the activation begins after the focal document's turn, if it has one.
        own = run.schedule.values[:total] == focal
        turns = np.flatnonzero(own) % T
        begin = int(turns[0]) % max(T - 1, 1) if (turns == turns[0]).all() else 0
        of_weights = _staircase(weights, np.arange(total), T, 0)
        of_activation = _staircase(activation[None, ~own], np.flatnonzero(~own), T - 1, begin)
        dataset = xr.Dataset(
            {
                "moved": (("size", "episode"), np.append(weights, activation[None], axis=0)),
                "path": (("group", "episode"), _paths(run, total, groups.values())),
                "left_out": ((), int(own.sum())),
            },
            coords={
                "size": [*groups, ACTIVATION],
                "group": list(groups),
                "episode": np.arange(total),
            },
            attrs={
                "focal": focal,
                "unit": "one run",
                "p": f"weights: {_about_p(T)}; activation: {_about_p(T - 1)}",
            },
        )
        value, null, p, adjusted = (
            np.append(getattr(of_weights, part), getattr(of_activation, part))
            for part in ("value", "null", "p", "p_adjusted")
        )
        staircase = Estimate(value, p=p, null=null, p_adjusted=adjusted)
        estimate.put(dataset, "staircase", "size", staircase, alternative="greater")
        return dataset

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Weights by group, and the focal document's activation, by episode."""
        fig, (top, bottom) = plots.figure(rows=2, width=2 * plots.COLUMN)
        for name, part, colour in plots.by_run(dataset):
            for axes, size in ((top, "total"), (bottom, ACTIVATION)):
                values = part.moved.sel(size=size)
                axes.plot(dataset.episode, values, color=colour, label=f"{name}: {size}")
        first = dataset.isel(run=0).drop_sel(size=["total", ACTIVATION])
        styles: Iterator[Any] = itertools.cycle(("--", ":", "-.", (0, (1, 3)), (0, (5, 3))))
        for size, style in zip(first["size"].values, styles, strict=False):
            line: dict[str, Any] = {"color": plots.HELD_OUT, "linestyle": style}
            values, label = first.moved.sel(size=size), f"{first.run.item()}: {size}"
            top.plot(dataset.episode, values, label=label, **line)
        top.set(ylabel="change of the weights (norm)", title="weights, over an episode")
        what = f"final residual stream of document {dataset.attrs['focal']}, over an episode"
        bottom.set(ylabel="change of the stream (norm)", title=what)
        for axes in (top, bottom):
            ends = np.arange(0, dataset.sizes["episode"] + 1, dataset.attrs["T"])
            axes.set(xlabel="episode", xticks=ends, yscale="log")
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return fig

    def summary(self, dataset: xr.Dataset) -> dict[str, Any]:
        """Staircases by run and size, and the verdict."""
        left_out = "episodes on the focal document do not count for the activation's staircase"
        return {**super().summary(dataset), "left_out": left_out}

    def main(self, dataset: xr.Dataset, side: int = 0) -> tuple[str, Estimate] | None:
        """The staircase of the activation, which the paper is about."""
        if side >= dataset.sizes["run"]:
            return None
        part = dataset.isel(run=side)
        return f"staircase of the {ACTIVATION}", estimate.get(part, "staircase", size=ACTIVATION)

    def agrees(self, dataset: xr.Dataset) -> bool | None:
        """Whether the focal document's activation goes down by steps."""
        return estimate.get(dataset.isel(run=0), "staircase", size=ACTIVATION).agrees(1, 0.02)

    def verdict(self, dataset: xr.Dataset) -> str:
        def staircases(size: str) -> str:
            def clause(part: xr.Dataset) -> str:
                return estimate.get(part, "staircase", size=size).with_test("+.2f", "no change")

            return ", ".join(words.by_run(dataset, clause, "{clause} in {run}"))

        T = dataset.attrs["T"]
        moved = dataset.moved.isel(run=0).sel(size="total").values
        start, end = moved[:T].mean(), moved[-T:].mean()
        ratio = (
            f"The last epoch's updates are {end / start:.2f} times the first's."
            if start > 0
            else "The first epoch's updates have no length to hold the last one's against."
        )
        return (
            "R² of a level for each epoch minus R² of a straight line, all weights: "
            f"{staircases('total')}; the focal document's activation: {staircases(ACTIVATION)}. "
            f"P: {dataset.attrs['p']}."
            f"{differences(dataset.sel(size='total'), 'staircase', 'weights')}"
            f"{differences(dataset.sel(size=ACTIVATION), 'staircase', 'activation')} {ratio}"
        )


def _staircase(sizes: stats.Floats, time: stats.Ints, T: int, begin: int) -> Estimate:
    """Of (size, E·T) sizes at (E·T,) times; with p-values where T places allow one of .05."""
    logs = np.log(sizes, out=np.full_like(sizes, np.nan), where=sizes > 0)
    nothing = np.full((1, len(sizes)), np.nan)
    places = stats.staircases(logs.T, time, T, begin) if T > 1 else nothing
    p, null, adjusted = stats.of_draws(places)
    offered = np.where(T < FEWEST, np.nan, 1.0)
    return Estimate(places[0], p=p * offered, null=null, p_adjusted=adjusted * offered)


def _about_p(T: int) -> str:
    """What the p-values of epochs of T places are of, and how small they can be."""
    if T < FEWEST:
        return f"none, as {T} places to begin an epoch give none of .05"
    return f"all {T} places to begin an epoch, at least {1 / T:.2g}"


def _paths(run: Run, total: int, groups: Iterable[NDArray[np.bool_]]) -> stats.Floats:
    """(group, episode): the sum of the norms of all updates of an episode, by group of modules; NaN
    where norms of several steps' updates at once were recorded."""
    norm, M = run.recorder("weight_deltas").norm.load(), run.config.steps
    norm = norm.sel(step=norm.step < total * M)
    steps = [np.linalg.norm(norm.values[:, which], axis=1).astype(float) for which in groups]
    if len(norm) < total * M:
        return np.full((len(steps), total), np.nan)
    return np.stack([reduce(s, "(episode step) -> episode", "sum", step=M) for s in steps])


def _changes(final: stats.Floats) -> stats.Floats:
    """Norms of the changes between neighbours of (n, position, width)."""
    change = np.diff(final.astype("float64"), axis=0)
    flat = rearrange(change, "episode position width -> episode (position width)")
    return np.linalg.norm(flat, axis=1)
