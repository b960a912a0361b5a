"""Cosine between weight residuals of all pairs of episodes, by group of modules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import xarray as xr
from annotated_types import Ge

from recovery_probe import Analysis, stats
from recovery_probe.analyze import estimate, plots, words
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.modules import module_groups
from recovery_probe.analyze.needs import RUN, epochs, once_an_epoch, recorded
from recovery_probe.analyze.trajectory import differences, minus_controls, updates, vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run


@dataclass(frozen=True)
class WeightResiduals(Analysis):
    """Residual: the weights after an episode, minus their mean over one cycle centred on it
    (paper, figure 8c), from the recorded sketches.

    cosine (run, group, episodes_done, other); by_lag (run, group, lag), its mean over pairs of
    episodes that far apart; stripe (run, group): mean cosine at lags T, 2T, … minus that at all
    other lags of more than T/2, of updates without the smooth trend of their path
    (`stats.without_trend`), with a one-sided p of rotating each epoch's updates by an amount of
    its own; its p_adjusted is corrected over the groups, which all rotate at once.
    stripe_difference (control, group): run minus control.

    Where a schedule that is no cycle keeps documents in their places, their episodes (`left_out`,
    (run), how many documents) do not count for the stripe, and there is no p: what they do to the
    others' updates is still a cycle.
    """

    # rotations that the stripes are held against
    permutations: Annotated[int, Ge(1)] = 199

    name = "weight_residuals"
    tested = "stripe"
    question = "Do the weights come back to similar places one cycle later, whatever their drift?"
    null = """Without a cycle the map has no stripes at lags T, 2T, …: rotating the updates within
    each epoch by random amounts, which keeps what an epoch is like and puts epochs out of step,
    gives stripes as strong. A smooth trend is taken out beforehand. A control of free order has
    none."""
    blind_spot = """A small p says that the schedule did what it is for: the same updates in the
    same order come back to similar places, and need do nothing for recovery. Plain least squares
    on documents that share a component has a stripe of .83: it does not tell features that training
    aligns (H1) from a state that comes back under a fixed kernel (H2). Subtracting a moving mean
    makes neighbours alike and residuals half a cycle apart unlike in any smooth trajectory; lags
    below T/2 say nothing. The stripe and its difference from the control have no interval from one
    run: places of a cycle depend on one another. Cosines come from sketches, with the error in
    provenance.json."""
    shown = ("stripe", "stripe at lag T, all weights")
    paper = "Bright stripes at lag T, over epochs 2 to 4 (figure 8c)."
    needs = (RUN, recorded("weight_deltas", every_episode=True), once_an_epoch, epochs(2))

    def compute(self, *runs: Run) -> xr.Dataset:
        return minus_controls(super().compute(*runs), "stripe")

    def of_run(self, run: Run, episodes: int) -> xr.Dataset:
        T = run.config.documents.count
        moved = updates(run, episodes)
        groups = module_groups(moved.module)
        # The kinds side by side: all of them are the whole, and one product serves every group.
        kinds = {name: vectors(moved, which) for name, which in groups.items() if name != "total"}
        ends = np.cumsum([0, *(v.shape[1] for v in kinds.values())])
        columns = {name: slice(*ends[i : i + 2]) for i, name in enumerate(kinds)}
        columns["total"] = slice(None)
        every = np.concatenate(list(kinds.values()), axis=1)
        residual, rows = stats.episode_residuals(every, T)
        cosines = [stats.cosines(own @ own.T) for own in (residual[:, columns[g]] for g in groups)]
        free = stats.free_to_move(run.schedule.values[: len(every)], T)
        stripe = self._stripe(every[free], [columns[g] for g in groups], len(every) // T, run)
        if not free.all():
            stripe = replace(stripe, p=np.nan * stripe.p, p_adjusted=np.nan * stripe.p)
        dataset = xr.Dataset(
            {
                "cosine": (
                    ("group", "episodes_done", "other"),
                    np.stack([cosine.astype("float32") for cosine in cosines]),
                ),
                "by_lag": (("group", "lag"), np.stack([stats.by_lag(c) for c in cosines])),
                "left_out": ((), int((~free[:T]).sum()), {"of_seeds": "each"}),
            },
            coords={
                "group": list(groups),
                "episodes_done": rows,
                "other": rows,
                "lag": np.arange(len(rows)),
            },
            attrs={
                "unit": "one run",
                "p": f"one-sided; {self.permutations} rotations within epochs, at least "
                f"{1 / (1 + self.permutations):.2g}; corrected over groups by the largest of each",
            },
        )
        about = "cosine at lag T minus at other lags"
        estimate.put(dataset, "stripe", "group", stripe, description=about, alternative="greater")
        return dataset

    def _stripe(self, every: stats.Floats, columns: list[slice], epochs: int, run: Run) -> Estimate:
        """Of each group's columns of (E·T, d) updates, T those that count in an epoch."""
        T = len(every) // epochs
        turned = stats.rotations(T, epochs, self.permutations, run.rng("rotations"))
        # No rotation comes first, rounded as the others are: one that changes nothing still ties.
        orders = np.concatenate([np.arange(len(every))[None], turned])
        draws = stats.stripes_of_orders(stats.without_trend(every, T), columns, orders, T)
        p, null, adjusted = stats.of_draws(draws, slack=1e-4)
        return Estimate(draws[0], p=p, null=null, p_adjusted=adjusted)

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """The map of all weights for each run, and the mean cosine by lag."""
        total, edges = dataset.sel(group="total"), dataset.episodes_done.values[[0, -1]]
        fig, panels, below = plots.above(dataset, "lag")
        lag = below["lag"]
        plots.maps(
            fig,
            panels,
            total.cosine.values,
            dataset.run.values,
            label="cosine of weight residuals",
            x="episodes done",
            y="episodes done",
            extent=(edges[0] - 0.5, edges[1] + 0.5) * 2,
        )
        for name, part, colour in plots.by_run(total):
            lag.plot(part.lag, part.by_lag, color=colour, label=name)
        for whole in range(dataset.attrs["T"], dataset.sizes["lag"], dataset.attrs["T"]):
            lag.axvline(whole, color=plots.HELD_OUT, linewidth=0.6, linestyle=":")
        plots.zero(lag)
        lag.set(xlabel="lag (episodes; dotted: whole cycles)", ylabel="mean cosine")
        lag.set_title("all weights")
        lag.legend()
        return fig

    def agrees(self, dataset: xr.Dataset) -> bool | None:
        """Whether the stripe is stronger than in the first control."""
        if not dataset.sizes["control"]:
            return None
        return estimate.get(dataset.sel(group="total"), "stripe_difference")[0].agrees(1, 0.05)

    def verdict(self, dataset: xr.Dataset) -> str:
        total = dataset.sel(group="total")
        why = "some weights did not move, or T = 2"

        def clause(part: xr.Dataset) -> str:
            left = int(part.left_out.max())
            kept = f", {left} left out that kept their places: no test" if left else ""
            return estimate.get(part, "stripe").with_test(undefined=why) + kept

        return (
            "Residuals of the whole weights one cycle apart are more alike than others by "
            f"{', '.join(words.by_run(total, clause, '{clause} in {run}'))}."
            f"{differences(total, 'stripe', 'the stripe')} A small p says that a fixed order "
            "repeats its updates, as it is made to, and no more."
        )
