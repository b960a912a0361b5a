"""Principal components of the weights' trajectory, and how much of it is a cycle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import xarray as xr
from annotated_types import Ge

from recovery_probe import Analysis, stats
from recovery_probe.analyze import estimate, plots, words
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.modules import module_groups
from recovery_probe.analyze.needs import RUN, epochs, once_an_epoch, recorded
from recovery_probe.analyze.trajectory import (
    differences,
    minus_controls,
    untested,
    updates,
    vectors,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recovery_probe import Run

SHARES = ("period_share", "cycle_share", "order")
DIMS = {
    "component": ("group", "episodes_done", "axis"),
    "variance_share": ("group", "axis"),
    "loop": ("group", "episode", "axis"),
    "loop_share": ("group", "axis"),
}


@dataclass(frozen=True)
class WeightCyclicity(Analysis):
    """The trajectory after each episode, from recorded sketches: of all weights, of kinds of
    modules (the paper's figure 9 shows the unembedding) and of each block.

    component (run, group, episodes_done, axis): coordinates on the first three principal
    components, drift and all; variance_share (run, group, axis): theirs; loop (run, group,
    episode, axis), loop_share (run, group, axis): the same of the loops below; document (run,
    episodes_done): trained on last. And numbers, all (run, group), of updates without the smooth
    trend of their path (`stats.without_trend`):

    - of loops (`stats.coherence`: each epoch without its straight drift): period_share, the share
      of their variance at the cycle's period; cycle_share, at the period and all its harmonics;
      order, |circular correlation| between the angle in their leading plane and the place in the
      cycle. Their p is one-sided, of turning each epoch about itself by a random amount.
    - of weight residuals (`stats.geometry`), in their leading plane: turns per epoch, with p,
      two-sided, of turning each cycle either way, where six cycles or more allow one below .05;
      tightening, the slope by cycle of the log of the mean radius, negative when the helix
      tightens; radius (run, group, cycle).

    A test's p_adjusted is corrected over the groups, which all turn at once. No p where a schedule
    that is no cycle keeps documents in their places (`keeps_places`): they are cycles by
    themselves. cycle_share_difference, order_difference, turns_difference, tightening_difference
    (control, group): run minus control.
    """

    # rotations that shares and order are held against
    permutations: Annotated[int, Ge(1)] = 499

    name = "weight_cyclicity"
    tested = "cycle_share"
    question = "Do the weights go round once an epoch, in the order of the documents?"
    null = """Any drift, smooth or rough, whose epochs have nothing to do with one another: turning
    each epoch about itself by a random amount gives as much variance at the cycle's period and as
    good an order; cycles turn either way. A smooth trend is taken out beforehand, since a drift
    that slows down bends the same way every epoch. Without a cycle 1/E of the variance repeats."""
    blind_spot = """A small p says that the schedule did what it is for: the same updates in the
    same order make a closed loop, whether or not anything recovers. Plain least squares on
    documents that share a component shows it too: one turn per epoch, order .93, a radius that
    falls by a quarter each epoch. So none of these numbers tells features that training aligns
    (H1) from a state that comes back under a fixed kernel (H2). The p-values need a trend that
    bends at most half as often as there are epochs, and are somewhat too small (9% below .05) for
    weights that jump about a fixed point, as noise does. Principal components of any smooth
    trajectory look like smooth curves, and every loop closes since its drift is taken out: the
    picture proves nothing. A radius that falls may be smaller updates late in training: no test is
    made of it. Sketches keep the geometry within the error in provenance.json; a p-value is right
    for what is sketched, whatever that error. A difference from the control has no interval from
    one run."""
    shown = ("turns", "turns per epoch, all weights")
    paper = """The unembedding goes along a helix that tightens, one turn per epoch (figure 9)."""
    needs = (RUN, recorded("weight_deltas", every_episode=True), once_an_epoch, epochs(3))

    def compute(self, *runs: Run) -> xr.Dataset:
        dataset = super().compute(*runs)
        return minus_controls(dataset, "cycle_share", "order", "turns", "tightening")

    def of_run(self, run: Run, episodes: int) -> xr.Dataset:
        T = run.config.documents.count
        moved = updates(run, episodes)
        groups = module_groups(moved.module, blocks=True)
        parts = [self._of_group(vectors(moved, which), run) for which in groups.values()]
        numbers = {name: np.stack([part[name] for part in parts], axis=-1) for name in parts[0]}
        first, cycles = {"of_seeds": "the first"}, len(moved) // T - 1
        schedule = run.schedule.values[: len(moved)]
        free = bool(stats.free_to_move(schedule, T).all())
        dataset = xr.Dataset(
            {name: (dims, np.moveaxis(numbers[name], -1, 0), first) for name, dims in DIMS.items()}
            | {
                "radius": (("group", "cycle"), numbers["radius"].T),
                "document": ("episodes_done", np.append(-1, schedule), first),
                "keeps_places": ((), not free),
            },
            coords={
                "group": list(groups),
                "episodes_done": np.arange(len(moved) + 1),
                "episode": np.arange(len(moved)),
                "axis": [1, 2, 3],
                "cycle": np.arange(cycles) + 1,
            },
            attrs={"unit": "one run", "p": self._about_p(cycles)},
        )
        turns = stats.either_way(numbers["turned"], run.rng("turns"))
        draws = {name: numbers[name] for name in SHARES} | {"turns": turns}
        for name, of_groups in draws.items():
            p, null, adjusted = stats.of_draws(of_groups)
            tested = Estimate(of_groups[0], null=null)
            if name != "turns" or _least(cycles) <= 0.05:
                without = np.nan * p
                tested = replace(
                    tested, p=p if free else without, p_adjusted=adjusted if free else without
                )
            alternative = "two-sided" if name == "turns" else "greater"
            estimate.put(dataset, name, "group", tested, alternative=alternative)
        estimate.put(dataset, "tightening", "group", untested(numbers["tightening"]))
        return dataset

    def _about_p(self, cycles: int) -> str:
        """What the p-values are of, and how small they can be."""
        turns = f"all directions of the cycles, at least {_least(cycles):.2g}"
        if _least(cycles) > 0.05:
            turns = f"none, as {cycles} cycles give no p-value below {_least(cycles):.2g}"
        return (
            f"shares, order: {self.permutations} rotations, at least "
            f"{1 / (1 + self.permutations):.2g}, corrected over groups by the largest of each "
            f"rotation; turns: {turns}; tightening: none"
        )

    def _of_group(self, moved: stats.Floats, run: Run) -> dict[str, Any]:
        T, rng = run.config.documents.count, run.rng("rotations")  # the same ones for every group
        path = np.concatenate([np.zeros((1, moved.shape[1])), moved.cumsum(axis=0)])
        component, share = stats.components(path)
        rest = stats.without_trend(moved, T)
        coherence = stats.coherence(rest, T, self.permutations, rng)
        loops = {"component": component, "variance_share": share}
        return coherence | stats.geometry(rest, T) | loops

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Loops in their leading plane, a colour for each epoch, and the numbers by group."""
        shown = ["unembedding" if "unembedding" in dataset.group else "attention", "total"]
        runs = range(min(2, dataset.sizes["run"]))
        loops = [[f"{r} {group}" for group in shown] for r in runs]
        fig, panels = plots.mosaic([*loops, ["share", "order"]], height=2.9)
        for r, group in ((r, group) for r in runs for group in shown):
            part = dataset.isel(run=r).sel(group=group)
            _loops(panels[f"{r} {group}"], part, dataset.attrs["T"])
        epochs = dataset.sizes["episode"] // dataset.attrs["T"]
        first = panels[loops[0][0]]
        for e, colour in enumerate(plots.by_epoch(epochs)):
            if e in (0, epochs // 2, epochs - 1):
                first.plot([], [], color=colour, label=f"epoch {e + 1}")
        fig.legend(*first.get_legend_handles_labels(), loc="outside upper right", ncols=3)
        place = np.arange(dataset.sizes["group"])
        for axes, name, label in (
            (panels["share"], "cycle_share", "share of variance in the cycle"),
            (panels["order"], "order", "order: |circular correlation|"),
        ):
            for run, part, colour in plots.by_run(dataset):
                tested = estimate.get(part, name)
                clear = tested.p_adjusted < 0.05
                axes.plot(tested.value, place, "o", color=colour, mfc="none", label=run)
                axes.plot(tested.value[clear], place[clear], "o", color=colour)
            axes.set(xlabel=label, xlim=(0, 1.02), yticks=place, yticklabels=dataset.group.values)
            axes.invert_yaxis()
        panels["share"].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        panels["order"].set_title("filled: corrected p < .05", fontsize=7, loc="right")
        return fig

    def agrees(self, dataset: xr.Dataset) -> bool | None:
        """Whether all weights turn more than in the first control, and their radius falls."""
        if not dataset.sizes["control"]:
            return None
        total = dataset.sel(group="total")
        told = (
            estimate.get(total, "turns_difference")[0].agrees(1, 0.1),
            estimate.get(total.isel(run=0), "tightening").agrees(-1, 0.02),
        )
        return None if None in told and False not in told else all(told)

    def verdict(self, dataset: xr.Dataset) -> str:
        loops = "the loops have no length: T = 2, or weights that did not move"

        def clause(part: xr.Dataset) -> str:
            share, order, turns = (
                estimate.get(part, name) for name in ("cycle_share", "order", "turns")
            )
            tightening = float(part.tightening)
            radius = "not defined" if np.isnan(tightening) else f"{tightening:+.2f}"
            few = ", no test of fewer than six cycles" if turns.p is None else ""
            kept = part.keeps_places.values.any()
            return (
                f"{share.with_test('.0%', loops)} of the variance in epochs repeats with the "
                f"cycle, angle and position correlate by {order.with_test(undefined=loops)}, turns "
                f"per epoch {turns.with_test(undefined=loops)}{few}, the log radius changes an "
                f"epoch by {radius}" + (" (no test: documents keep their places)" if kept else "")
            )

        total = dataset.sel(group="total")
        return (
            f"All weights. {'. '.join(words.by_run(total, clause))}."
            f"{differences(total, 'cycle_share', 'share of the variance', '+.0%')} A small p says "
            "that a fixed order repeats its updates, as it is made to, and no more."
        )


def _least(cycles: int) -> float:
    """The smallest p-value that turning so many cycles either way can give."""
    return 2.0 ** (1 - cycles)


def _loops(axes: Axes, part: xr.Dataset, T: int) -> None:
    """Each epoch without its drift, an arrow on its way; dots where four documents were
    trained on, named in epoch 1."""
    x, y = part.loop.values.T[:2]
    document = part.document.values[1:]
    for e, colour in enumerate(plots.by_epoch(len(x) // T)):
        these = slice(e * T, (e + 1) * T)
        axes.plot(x[these], y[these], "-", color=colour)
        i = e * T + T // 3
        if i + 1 < (e + 1) * T:
            way = {"arrowstyle": "-|>", "color": colour, "mutation_scale": 9}
            axes.annotate("", (x[i + 1], y[i + 1]), (x[i], y[i]), arrowprops=way)
    for d in sorted({0, T // 4, T // 2, 3 * T // 4}):
        episodes = np.flatnonzero(document == d)
        axes.plot(x[episodes], y[episodes], ".", color="black", markersize=3)
        for i in episodes[:1]:
            axes.annotate(str(d), (x[i], y[i]), xytext=(3, 3), textcoords="offset points")
    axes.set_title(
        f"{part.run.item()}, {part.group.item()}: epochs without their drift\n"
        f"plane holds {float(part.loop_share[:2].sum()):.0%} of their variance"
    )
    axes.set(xticklabels=[], yticklabels=[], aspect="equal", adjustable="datalim")
