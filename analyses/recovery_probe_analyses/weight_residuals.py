"""Cosine between weight residuals of all pairs of episodes, by group of modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import xarray as xr
from annotated_types import Ge
from einops import rearrange
from numpy.typing import NDArray

from recovery_probe import Analysis, stats
from recovery_probe.analyze import estimate, plots, words
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.modules import module_groups
from recovery_probe.analyze.needs import RUN, epochs, once_an_epoch, recorded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run


@dataclass(frozen=True)
class WeightResiduals(Analysis):
    """Residual: the weights after an episode, minus their mean over one cycle centred on it
    (paper, figure 8c), from the recorded sketches.

    cosine (run, group, episodes_done, other); by_lag (run, group, lag), its mean over pairs of
    episodes that far apart; stripe (run, group): mean cosine at lags T, 2T, … minus that at all
    other lags of more than T/2, with a one-sided p of rotating each epoch's updates by an amount of
    its own, and a bootstrap over places in the cycle.
    """

    # rotations that the stripes are held against
    permutations: Annotated[int, Ge(1)] = 199

    name = "weight_residuals"
    question = "Do the weights come back to similar places one cycle later, whatever their drift?"
    null = """Without a cycle the map has no stripes at lags T, 2T, …: rotating the updates within
    each epoch by random amounts, which keeps what an epoch is like and puts epochs out of step,
    gives stripes as strong. A shuffled control has none but document 0's."""
    blind_spot = """Subtracting a moving mean makes neighbours alike and residuals half a cycle
    apart unlike in any smooth trajectory; lags below T/2 say nothing. A cycle of period T follows
    from the same updates coming in the same order: it need not do anything for recovery. Cosines
    come from sketches, with the error in provenance.json."""
    needs = (RUN, recorded("weight_deltas", every_episode=True), epochs(2), once_an_epoch)

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
        turned = stats.rotations(T, len(every) // T, self.permutations, run.rng("rotations"))
        # No rotation comes first, rounded as the others are: one that changes nothing still ties.
        orders = np.concatenate([np.arange(len(every))[None], turned])
        chances = stats.stripes_of_orders(every, [columns[name] for name in groups], orders, T)
        p = stats.permutation_p(chances[0], chances[1:], slack=1e-4)
        residual, rows = stats.episode_residuals(every, T)
        parts = []
        for name in groups:
            own = residual[:, columns[name]]
            cosine = stats.cosines(own @ own.T)
            bounds = stats.stripe_interval(cosine, T, run.rng("bootstrap"))
            parts.append(
                (cosine.astype("float32"), stats.by_lag(cosine), stats.stripe(own, T), *bounds)
            )
        cosine, by_lag, stripe, low, high = map(np.stack, zip(*parts, strict=True))
        dataset = xr.Dataset(
            {
                "cosine": (("group", "episodes_done", "other"), cosine),
                "by_lag": (("group", "lag"), by_lag),
            },
            coords={
                "group": list(groups),
                "episodes_done": rows,
                "other": rows,
                "lag": np.arange(len(rows)),
            },
            attrs={
                "unit": "documents",
                "interval": "95% percentile bootstrap over positions in the cycle",
                "p": f"one-sided; {self.permutations} rotations within epochs",
            },
        )
        about = "cosine at lag T minus at other lags"
        estimate.put(
            dataset, "stripe", "group", Estimate(stripe, low, high, p=p), description=about
        )
        return dataset

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

    def verdict(self, dataset: xr.Dataset) -> str:
        total = dataset.sel(group="total")
        why = "some weights did not move, or T = 2"
        stripes = words.by_run(
            total,
            lambda part: estimate.get(part, "stripe").with_test(undefined=why),
            "{clause} in {run}",
        )
        p = estimate.get(total.isel(run=0), "stripe").p
        said = (
            "nothing can be said"
            if np.isnan(p)
            else "a cycle that chance does not give"
            if p < 0.05
            else "no cycle can be told from chance"
        )
        return (
            "Residuals of the whole weights one cycle apart are more alike than others by "
            f"{', '.join(stripes)}: {said}."
        )


def updates(run: Run, episodes: int) -> xr.DataArray:
    """(episode, module, sketch): the update of every episode of the whole epochs among the first
    `episodes`."""
    T = run.config.documents.count
    total = episodes // T * T
    moved = run.weight_trajectory()[: total + 1].diff("episodes_done")
    return moved.rename(episodes_done="episode").assign_coords(episode=np.arange(total))


def vectors(moved: xr.DataArray, which: NDArray[np.bool_]) -> stats.Floats:
    """(E·T, at most E·T): the updates of a group of modules, up to a rotation of the sketches."""
    return stats.compact(flat(moved, which))


def flat(moved: xr.DataArray, which: NDArray[np.bool_]) -> stats.Floats:
    """(E·T, d): the sketches of the updates of a group of modules, side by side."""
    return rearrange(moved.values[:, which], "episode module sketch -> episode (module sketch)")
