"""Principal components of the weights' trajectory, and how much of it is a cycle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import xarray as xr
from annotated_types import Ge

from recovery_probe import Analysis, stats
from recovery_probe.analyze import estimate, plots, words
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.modules import module_groups
from recovery_probe.analyze.needs import RUN, epochs, once_an_epoch, recorded
from recovery_probe_analyses.weight_residuals import updates, vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recovery_probe import Run

TESTED = ("period_share", "cycle_share", "order", "turns", "tightening")
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
    episodes_done): trained on last. And numbers, all (run, group):

    - of loops (`stats.coherence`: each epoch without its straight drift): period_share, the share
      of their variance at the cycle's period; cycle_share, at the period and all its harmonics;
      order, |circular correlation| between the angle in their leading plane and the place in the
      cycle. Their p is one-sided, of turning each epoch about itself by a random amount.
    - of weight residuals (`stats.geometry`), in their leading plane: turns per epoch, with p,
      two-sided, of turning each cycle either way; tightening, the slope by cycle of the log of the
      mean radius, negative when the helix tightens, with p, two-sided, over all orders of the
      cycles; radius (run, group, cycle).
    """

    # rotations that shares and order are held against
    permutations: Annotated[int, Ge(1)] = 499

    name = "weight_cyclicity"
    question = "Do the weights go round once an epoch, in the order of the documents?"
    null = """Any drift, smooth or rough, whose epochs have nothing to do with one another: turning
    each epoch about itself by a random amount gives as much variance at the cycle's period and as
    good an order; cycles turn either way, with radii in any order."""
    blind_spot = """The same updates in the same order make a closed loop, whether or not anything
    recovers; the shuffled control shows what the documents alone do. Principal components of any
    smooth trajectory look like smooth curves, and every loop closes since its drift is taken out:
    the picture proves nothing. A radius that falls may be smaller updates late in training.
    Sketches keep the geometry within the error in provenance.json; a p-value is right for what is
    sketched, whatever that error."""
    needs = (RUN, recorded("weight_deltas", every_episode=True), epochs(3), once_an_epoch)

    def of_run(self, run: Run, episodes: int) -> xr.Dataset:
        T = run.config.documents.count
        moved = updates(run, episodes)
        groups = module_groups(moved.module, blocks=True)
        parts = [self._of_group(vectors(moved, which), run) for which in groups.values()]
        numbers = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        first, cycles = {"of_seeds": "the first"}, len(moved) // T - 1
        least = 1 / (1 + self.permutations)
        document = np.append(-1, run.schedule.values[: len(moved)])
        dataset = xr.Dataset(
            {name: (dims, numbers[name], first) for name, dims in DIMS.items()}
            | {
                "radius": (("group", "cycle"), numbers["radius"]),
                "document": ("episodes_done", document, first),
            },
            coords={
                "group": list(groups),
                "episodes_done": np.arange(len(moved) + 1),
                "episode": np.arange(len(moved)),
                "axis": [1, 2, 3],
                "cycle": np.arange(cycles) + 1,
            },
            attrs={
                "unit": "one run",
                "p": f"shares, order: {self.permutations} rotations, at least {least:.2g}; turns: "
                f"all directions of the cycles, at least {2.0 ** (1 - cycles):.2g}; tightening: "
                "all orders of the cycles",
            },
        )
        for name in TESTED:
            estimate.put(dataset, name, "group", Estimate(numbers[name], p=numbers[f"{name}_p"]))
        return dataset

    def _of_group(self, moved: stats.Floats, run: Run) -> dict[str, Any]:
        T, rng = run.config.documents.count, run.rng("rotations")
        path = np.concatenate([np.zeros((1, moved.shape[1])), moved.cumsum(axis=0)])
        component, share = stats.components(path)
        coherence = stats.coherence(moved, T, self.permutations, rng)
        loops = {"component": component, "variance_share": share}
        return coherence | stats.geometry(moved, T) | loops

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
                clear = tested.p < 0.05
                axes.plot(tested.value, place, "o", color=colour, mfc="none", label=run)
                axes.plot(tested.value[clear], place[clear], "o", color=colour)
            axes.set(xlabel=label, xlim=(0, 1.02), yticks=place, yticklabels=dataset.group.values)
            axes.invert_yaxis()
        panels["share"].legend(title="filled: p < .05", title_fontsize=7)
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        loops = "the loops have no length: T = 2, or weights that did not move"
        cycles = "it takes four epochs, and weights that move"

        def clause(part: xr.Dataset) -> str:
            share, order, turns, tightening = (estimate.get(part, name) for name in TESTED[1:])
            return (
                f"{share.with_test('.0%', loops)} of the variance in epochs repeats with the "
                f"cycle, angle and position correlate by {order.with_test(undefined=loops)}, turns "
                f"per epoch {turns.with_test(undefined=loops)} (the p-value is of one direction), "
                f"the log radius changes an epoch by {tightening.with_test('+.2f', cycles)}"
            )

        return f"All weights. {'. '.join(words.by_run(dataset.sel(group='total'), clause))}."


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
