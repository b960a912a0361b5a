"""What the optimizer remembers: does recovery need it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recovery_probe import stats
from recovery_probe.analyze import ages, estimate, plots
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.errors import Missing
from recovery_probe.experiments import NEEDS, Experiment, scores
from recovery_probe.record import checkpoint
from recovery_probe.record.folder import checkpoint_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run
    from recovery_probe.train.plan import Point

KEPT, RESET, ONCE = "kept", "reset_episode", "reset_once"
SIZES, UNITS = "weight_deltas", "share of the score with the state kept"
WORDS = {
    KEPT: "kept",
    RESET: "reset at each episode",
    ONCE: "reset once",
}


@dataclass(frozen=True)
class OptimizerMemory(Experiment):
    """From a checkpoint at the end of an epoch two epochs in the order of that epoch, with the
    optimizer's state kept as the run keeps it (`kept`), reset at each episode (`reset_episode`),
    and reset once, where they begin (`reset_once`; not of a run that resets it at each epoch).

    loss (arm, age): mean loss at the ages 1 to T, after a document's first episode there. score
    (arm, reading): the share of the loss forgotten since age 1 that is gone at age T, of the mean
    (`curve`) and cross-fitted, as in `age_curve`. left (arm): the score, `curve`, as a share of
    that with the state kept. forgotten (arm): the rise of the mean loss, nats. step_size (arm): the
    mean length of an update, as a share of that with the state kept, where the run has
    `weight_deltas`.

    Of an optimizer that carries nothing from one episode to the next no arm is trained: left is 1,
    by definition.
    """

    name = "optimizer_memory"
    question = "Does recovery need what the optimizer remembers from one episode to the next?"
    null = "What the optimizer remembers plays no part: left is 1 without it."
    blind_spot = """A reset changes how long steps are too: momentum has to build up again, Adam's
    first steps have the full rate in every weight. So left below 1 may be shorter steps, and above
    1 longer ones (step_size tells how much). The weights keep what was trained before with memory,
    and two epochs without may be too few to lose that. What is left without memory is of no one
    mechanism: features that training aligns (H1) and a shared state that comes back (H2) both are.
    The documents of one run share its weights: intervals say how much documents differ."""
    needs = NEEDS

    def arms(self, run: Run) -> Mapping[str, Point]:
        if run.provenance.get("role") == "control" or self.forgets(run):
            return {}
        order, T = self.last_order(run), run.config.documents.count
        # Of the same recorder, so that the lengths of updates are compared.
        both = {"recorders": [SIZES] if SIZES in run.recorders else []}
        found = {
            KEPT: self.arm(run, KEPT, order * 2, T, **both),
            RESET: self.arm(run, RESET, order * 2, T, optimizer={"reset": "episode"}, **both),
        }
        if run.config.optimizer.reset == "never":
            # One epoch of two rounds, reset where it begins.
            once = {"optimizer": {"reset": "epoch"}, **both}
            found[ONCE] = self.arm(run, ONCE, order * 2, 2 * T, **once)
        return found

    def forgets(self, run: Run) -> str:
        """Why nothing is carried from one episode to the next; empty where something is. Raises
        `Missing` where that cannot be told."""
        if run.config.optimizer.reset == "episode":
            return "the run resets its optimizer at each episode"
        folder = checkpoint_folder(run.path, self.begins(run))
        if not (folder / checkpoint.STATE).exists():
            raise Missing(f"{folder}: holds no state of the optimizer: it is of an early version")
        tree = checkpoint.state(folder)["state"]  # as `packing` has it
        optimizer = dict(dict(tree["dict"])["optimizer"]["dict"])
        remembered = optimizer["state"]["dict"]
        return "" if remembered else f"{run.config.optimizer.name}, as it was set, has no state"

    def compute(self, *runs: Run) -> xr.Dataset:
        run, T, rng = runs[0], runs[0].config.documents.count, runs[0].rng("optimizer_memory")
        attrs = {
            "unit": "documents",
            "interval": "95% bootstrap over documents",
            "begins": self.begins(run),
        }
        if why := self.forgets(run):
            dataset = xr.Dataset(coords={"arm": [RESET]}, attrs={**attrs, "forgets": why})
            left = Estimate(np.ones(1), null=np.ones(1))
            estimate.put(dataset, "left", ("arm",), left, units=UNITS)
            return dataset
        arms = self.made(run)
        curves = scores.first_waits([*arms.values()], T)
        dataset = xr.Dataset(
            {
                "loss": (("arm", "age"), curves.mean(axis=1), ages.NATS),
                "forgotten": ("arm", stats.own_tops(curves.mean(axis=1))[1], ages.NATS),
            },
            coords={
                "arm": [*arms],
                "reading": list(scores.READINGS),
                "age": np.arange(1, T + 1),
            },
            attrs=attrs,
        )
        score = scores.of_arms(curves, rng)
        estimate.put(dataset, "score", ("arm", "reading"), score, **ages.SHARE)
        left = scores.interval(scores.shares, curves, rng, null=1.0)
        estimate.put(dataset, "left", ("arm",), left, units=UNITS)
        if all(SIZES in arm.recorders for arm in arms.values()):
            sizes = np.array([_mean_length(arm) for arm in arms.values()])
            units = {"units": "share of the length with the state kept"}
            dataset["step_size"] = ("arm", sizes / sizes[0], units)
        return dataset

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Losses by age, and scores, with the optimizer's state kept and reset."""
        if why := dataset.attrs.get("forgets"):
            fig, (axes,) = plots.figure(height=1)
            plots.note(axes, f"nothing is remembered:\n{why}")
            axes.set_axis_off()
            return fig
        fig, panels = plots.mosaic([["loss", "score"]])
        for i, name in enumerate(dataset.arm.values):
            y, label = dataset.loss.sel(arm=name), WORDS[str(name)]
            panels["loss"].plot(dataset.age, y, color=plots.colour(i), label=label)
        panels["loss"].set(title="first wait", xlabel="age, episodes", ylabel="nats/token")
        x = np.arange(dataset.sizes["arm"])
        for i, (reading, form) in enumerate(zip(scores.READINGS, "os", strict=True)):
            score = estimate.get(dataset, "score", reading=reading)
            options = {"color": plots.colour(i), "label": reading}
            plots.points(panels["score"], x + 0.1 * i, score, form, **options)
        plots.zero(panels["score"])
        ticks = [WORDS[str(name)].replace("reset ", "reset\n") for name in dataset.arm.values]
        panels["score"].set_xticks(x + 0.05, ticks)
        panels["score"].set(title="recovery at age T", ylabel="share of forgotten loss")
        for axes in panels.values():
            axes.legend()
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        if why := dataset.attrs.get("forgets"):
            return (
                f"Nothing is remembered from one episode to the next: {why}. So all recovery is "
                "there without it: left is 1 by definition, and nothing was trained."
            )
        kept = estimate.get(dataset, "score", arm=KEPT, reading="curve")
        text = f"Recovery at age T with the optimizer's state kept {kept}"
        for name in (str(name) for name in dataset.arm.values if name != KEPT):
            score = estimate.get(dataset, "score", arm=name, reading="curve")
            left = estimate.get(dataset, "left", arm=name)
            text += f"; {WORDS[name]} {score}"
            text += f", {left} of that" if np.isfinite(left.value) else ""
            if "step_size" in dataset:
                text += f" (updates {dataset.step_size.sel(arm=name).item():.2g} times as long)"
        if not kept.value >= scores.LEAST:
            return f"{text}. There is no recovery that memory could be needed for."
        return f"{text}."


def _mean_length(arm: Run) -> float:
    """Mean norm of the update of a step."""
    norm = arm.recorder(SIZES).norm.values.astype(float)  # (step, module)
    return float(np.sqrt((norm**2).sum(axis=1)).mean())
