"""Principal components of the weights' trajectory, and how much of it is a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from recovery_probe.analysis import (
    Analysis,
    common,
    compared,
    estimates,
    labels,
    module_groups,
    with_test,
)

from recovery_probe import plots, stats
from recovery_probe.errors import Missing
from recovery_probe.record.run import Run
from recovery_probe.seeds import generator
from recovery_probe_analyses.weight_residuals import updates, vectors


def compute(run: Run, *, controls: Sequence[Run] = (), permutations: int = 499) -> xr.Dataset:
    """The trajectory after each episode, from recorded sketches: of all weights, of kinds of
    modules (the paper's figure 9 shows the unembedding) and of each block.

    component (run, group, episodes_done, axis): coordinates on the first three principal
    components, drift and all; variance_share (run, group, axis): theirs; loop (run, group,
    episode, axis), loop_share (run, group, axis): the same of the loops below; document (run,
    episodes_done): trained on last. And numbers, all (run, group):

    - of loops (`stats.epoch_loops`: each epoch without its straight drift): period_share, the share
      of their variance at the cycle's period; cycle_share, at the period and all its harmonics,
      that is, in the mean over epochs at each position of the cycle (1/E is expected of epochs
      that have nothing in common); order, |circular correlation| between the angle in their
      leading plane and the position in the cycle (Fisher and Lee 1983). Their `_p` is one-sided,
      of turning each epoch about itself by a random amount, `permutations` times.
    - of weight residuals (`stats.episode_residuals`), in their leading plane: turns per epoch, with
      turns_p, two-sided, of turning each cycle either way; tightening, the slope by cycle of the
      log of the mean radius, negative when the helix tightens, with tightening_p, two-sided, over
      all orders of the cycles; radius (run, group, cycle).

    Raises `Missing` without `weight_deltas` of every episode, or before three epochs are done.
    """
    runs = [run, *controls]
    done, told = common(runs)
    dataset = xr.concat([_one(r, done, permutations) for r in runs], dim="run")
    dataset = dataset.assign_coords(run=labels(runs))
    for name in ("component", "variance_share", "loop", "loop_share", "document"):
        dataset[name].attrs["of_seeds"] = "the first"
    T, cycles = run.config.documents.count, dataset.sizes["cycle"]
    dataset.attrs |= {
        "T": T,
        "unit": "one run",
        "p": f"shares, order: {permutations} rotations, at least {1 / (1 + permutations):.2g}; "
        f"turns: all directions of the cycles, at least {2.0 ** (1 - cycles):.2g}; tightening: all "
        "orders of the cycles",
        **told,
    }
    return dataset


def _one(run: Run, episodes: int, permutations: int) -> xr.Dataset:
    T = run.config.documents.count
    moved, epochs = updates(run, episodes)
    if epochs < 3:
        raise Missing(f"{run.path}: {epochs} epochs are done; this needs three")
    groups = module_groups(moved.module, blocks=True)
    parts: dict[str, list[Any]] = {}
    for which in groups.values():
        of_group = vectors(moved, which)
        path = np.concatenate([np.zeros((1, of_group.shape[1])), of_group.cumsum(axis=0)])
        axes, share = stats.components(path)
        rng = generator(run.config.seed, "rotations")
        numbers = stats.coherence(of_group, T, permutations, rng) | stats.geometry(of_group, T)
        for name, value in {**numbers, "component": axes, "variance_share": share}.items():
            parts.setdefault(name, []).append(value)
    dims = {
        "component": ("group", "episodes_done", "axis"),
        "variance_share": ("group", "axis"),
        "loop": ("group", "episode", "axis"),
        "loop_share": ("group", "axis"),
        "radius": ("group", "cycle"),
    }
    arrays = {name: (dims.get(name, ("group",)), np.stack(v)) for name, v in parts.items()}
    return xr.Dataset(
        {**arrays, "document": ("episodes_done", np.append(-1, run.schedule.values[: len(moved)]))},
        coords={
            "group": list(groups),
            "episodes_done": np.arange(len(moved) + 1),
            "episode": np.arange(len(moved)),
            "axis": [1, 2, 3],
            "cycle": np.arange(1, epochs),
        },
    )


@plots.styled
def plot(dataset: xr.Dataset) -> Figure:
    """Loops in their leading plane, a colour for each epoch, and the numbers by group."""
    shown = [g for g in ("unembedding", "total") if g in dataset.group.values]
    shown = shown if len(shown) == 2 else ["attention", "total"]
    runs = list(range(min(2, dataset.sizes["run"])))
    fig, panels = plots.mosaic(
        [[f"{r} {g}" for g in shown] for r in runs] + [["share", "order"]], height=2.9
    )
    for r, group in ((r, g) for r in runs for g in shown):
        part = dataset.isel(run=r).sel(group=group)
        _loops(panels[f"{r} {group}"], part, dataset.attrs["T"])
    epochs = dataset.sizes["episode"] // dataset.attrs["T"]
    for e, colour in enumerate(plots.by_epoch(epochs)):
        if e in (0, epochs // 2, epochs - 1):
            panels[f"0 {shown[0]}"].plot([], [], color=colour, label=f"epoch {e + 1}")
    fig.legend(
        *panels[f"0 {shown[0]}"].get_legend_handles_labels(), loc="outside upper right", ncols=3
    )
    position = np.arange(dataset.sizes["group"])
    for name, label in (
        ("cycle_share", "share of variance in the cycle"),
        ("order", "order: |circular correlation|"),
    ):
        axes = panels["share" if name == "cycle_share" else "order"]
        for r, run in enumerate(dataset.run.values):
            part = dataset.isel(run=r)
            clear = part[name + "_p"].values < 0.05
            axes.plot(part[name], position, "o", color=plots.colour(r), mfc="none", label=run)
            axes.plot(part[name].values[clear], position[clear], "o", color=plots.colour(r))
        axes.set(xlabel=label, xlim=(0, 1.02), yticks=position, yticklabels=dataset.group.values)
        axes.invert_yaxis()
    panels["share"].legend(title="filled: p < .05", title_fontsize=7)
    return fig


def _loops(axes: Axes, part: xr.Dataset, T: int) -> None:
    """Each epoch without its drift, an arrow on its way; dots where four documents were
    trained on, named in epoch 1."""
    x, y = part.loop.values.T[:2]
    document = part.document.values[1:]
    colours = plots.by_epoch(len(x) // T)
    for e, colour in enumerate(colours):
        these = slice(e * T, (e + 1) * T)
        axes.plot(x[these], y[these], "-", color=colour)
        i = e * T + T // 3
        if i + 1 < (e + 1) * T:
            way = {"arrowstyle": "-|>", "color": colour, "mutation_scale": 9}
            axes.annotate("", (x[i + 1], y[i + 1]), (x[i], y[i]), arrowprops=way)
    for d in sorted({0, T // 4, T // 2, 3 * T // 4}):
        at = np.flatnonzero(document == d)
        axes.plot(x[at], y[at], ".", color="black", markersize=3)
        axes.annotate(str(d), (x[at[0]], y[at[0]]), xytext=(3, 3), textcoords="offset points")
    axes.set_title(
        f"{part.run.item()}, {part.group.item()}: epochs without their drift\n"
        f"plane holds {float(part.loop_share[:2].sum()):.0%} of their variance"
    )
    axes.set(xticklabels=[], yticklabels=[], aspect="equal", adjustable="datalim")


def summary(dataset: xr.Dataset) -> dict[str, Any]:
    """Every number by run and group, and the verdict."""
    told = []
    for r, name in enumerate(dataset.run.values):
        part = {
            k: float(dataset[k].isel(run=r).sel(group="total"))
            for k in map(str, dataset.data_vars)
            if dataset[k].dims == ("run", "group")
        }

        def tested(what: str, form: str, why: str, part: dict[str, float] = part) -> str:
            return with_test(part[what], part[f"{what}_p"], form, why)

        loops = "the loops have no length: T = 2, or weights that did not move"
        told.append(
            f"{name}: {tested('cycle_share', '.0%', loops)} of the variance in epochs repeats with "
            f"the cycle, angle and position correlate by {tested('order', '.2f', loops)}, turns "
            f"per epoch {tested('turns', '.2f', loops)} (the p-value is of one direction), the log "
            "radius changes an epoch by "
            f"{tested('tightening', '+.2f', 'it takes four epochs, and weights that move')}"
        )
    text = f"{compared(dataset)}All weights. {'. '.join(told)}."
    return {"estimates": estimates(dataset), "verdict": text}


ANALYSIS = Analysis(
    name="weight_cyclicity",
    question="Do the weights go round once an epoch, in the order of the documents?",
    null="Any drift, smooth or rough, whose epochs have nothing to do with one another: turning "
    "each epoch about itself by a random amount gives as much variance at the cycle's period and "
    "as good an order; cycles turn either way, with radii in any order.",
    blind_spot="The same updates in the same order make a closed loop, whether or not anything "
    "recovers; the shuffled control shows what the documents alone do. Principal components of "
    "any smooth trajectory look like smooth curves, and every loop closes since its drift is taken "
    "out: the picture proves nothing. A radius that "
    "falls may be smaller updates late in training. Sketches keep the geometry within the error "
    "in provenance.json; a p-value is right for what is sketched, whatever that error.",
    compute=compute,
    plot=plot,
    summary=summary,
)
