"""Omission and reorder: does a document come back when its time has come, or when those before it
are trained on?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import xarray as xr
from annotated_types import Ge, Le

from recovery_probe import stats
from recovery_probe.analyze import ages, estimate, groups, plots
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.experiments import NEEDS, Experiment, scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run
    from recovery_probe.train.plan import Point

ORDERS = ("same", "reversed", "half_turn", "fresh")


@dataclass(frozen=True)
class ClockOrCue(Experiment):
    """Reorder: from a checkpoint at the end of an epoch, an epoch in the same order, backwards,
    turned by half a cycle, and on as many documents that were never trained on. loss (arm, age),
    ages 1 to T: of the documents of the first half of the cycle, none of which is trained on again
    before it is T episodes old in any of these, so that all are read at equal age. score (arm,
    reading): the share of the loss forgotten since age 1 that is gone at age T, of their mean
    (`curve`) and cross-fitted, as in `age_curve`. share (arm): the score of an order over that of
    the same order, `curve` both; not defined where that is below .05.

    Omission: from there `cycles` cycles without a few documents, evenly spaced, the others closing
    up; `groups` such runs, so that `groups` · `at_once` documents are left out once. Also from a
    checkpoint of the control. Phase of a document: of its lowest loss in a cycle, from the
    place where its turn would be, in radians of a cycle. resultant (run, cycle): the length of
    the mean of these as unit vectors, with the p-value of Rayleigh's test; late (run, cycle): their
    mean direction, in episodes after the turn; dip (run, cycle): how much of the rise from a
    document's last loss under training to its highest in a cycle is gone at its lowest. omitted
    (run, cycle, place): the mean loss, from half a cycle before the turn to half a cycle after it.

    `clock_or_cue` section F and G of the review's table; on linear documents .96 in the first cycle
    (.06 in the control), and scores of .74, .42, .28 and 0 by order.
    """

    # documents left out of a run at once, evenly spaced
    at_once: Annotated[int, Ge(1), Le(1000)] = 4
    # runs that leave some out, each others
    groups: Annotated[int, Ge(1), Le(1000)] = 5
    # cycles without them
    cycles: Annotated[int, Ge(1), Le(3)] = 2

    name = "clock_or_cue"
    question = """Does a document recover when its time has come (a clock in the weights), or when
    those that come before it are trained on (a cue)?"""
    null = """Reorder: an order that shares nothing with the old one brings nothing back: 0. A clock
    would bring as much back on fresh documents as in the same order. Omission: lowest losses
    anywhere in the cycle: uniform phases, a resultant of about √π / (2 √n) of n documents, and the
    same from a checkpoint of the control."""
    blind_spot = """Both hold of documents that share a component, with no feature learned: a cue
    need not be a feature (see `linearised`). Fresh documents differ from the old in all ways, a
    clock that they disturb among these. The documents of one run share its trajectory: Rayleigh's
    test takes them for independent. In a first cycle a document is also still being forgotten."""
    needs = NEEDS
    optional: ClassVar[tuple[str, ...]] = ("fresh",)
    tested = "resultant"

    def arms(self, run: Run) -> Mapping[str, Point]:
        T = run.config.documents.count
        found = {}
        for g, left_out in enumerate(self.left_out(T)):
            rest = [k for k in range(T) if k not in left_out]
            found[f"omit-{g}"] = self.arm(run, f"omit-{g}", rest * self.cycles, len(rest))
        if run.provenance.get("role") == "control":
            return found
        there = list(range(T))
        half = T // 2
        orders = {
            "same": there,
            "reversed": there[::-1],
            "half_turn": there[half:] + there[:half],
        }
        for name, order in orders.items():
            found[name] = self.arm(run, name, order, T)
        fresh = list(range(T, 2 * T))
        found["fresh"] = self.arm(run, "fresh", fresh, T, documents={"count": 2 * T})
        return found

    def left_out(self, T: int) -> list[list[int]]:
        """The documents that each run leaves out: evenly spaced, no document twice."""
        at_once = min(self.at_once, max(1, T // 3))
        apart = T / at_once
        groups = min(self.groups, int(apart))
        starts = [int(g * apart / groups) for g in range(groups)]
        return [sorted({int(start + i * apart) % T for i in range(at_once)}) for start in starts]

    def compute(self, *runs: Run) -> xr.Dataset:
        run, T = runs[0], runs[0].config.documents.count
        arms, rng = self.made(run), run.rng("clock_or_cue")
        curves = np.stack([self._curves(run, arms[n]) for n in ORDERS if n in arms])
        names = [name for name in ORDERS if name in arms]
        dataset = xr.Dataset(
            {"loss": (("arm", "age"), curves.mean(axis=1), ages.NATS | ages.EACH)},
            coords={
                "arm": names,
                "reading": list(scores.READINGS),
                "age": np.arange(1, T + 1),
                "run": groups.labels(runs),
                "cycle": np.arange(1, self.cycles + 1),
            },
            attrs={
                "unit": "documents",
                "interval": "95% bootstrap over documents",
                "begins": self.begins(run),
                "documents": curves.shape[1],
                "left_out": [name for name in ORDERS if name not in arms],
            },
        )
        score = scores.of_arms(curves, rng)
        estimate.put(dataset, "score", ("arm", "reading"), score, **ages.SHARE)
        share = scores.interval(scores.shares, curves, rng)
        units = "share of the score in the same order"
        estimate.put(dataset, "share", ("arm",), share, units=units)
        self._put_omitted(dataset, runs, T)
        return dataset

    def _curves(self, run: Run, arm: Run) -> stats.Floats:
        """(document, age): losses at ages 1 to T of the documents of the first half."""
        T, begins = run.config.documents.count, self.begins(run)
        before, after = run.losses.values, arm.losses.values
        joined = np.concatenate([before[: begins + 1, :T], after[1:, :T]])
        last = {int(k): e for e, k in enumerate(run.schedule.values[:begins])}
        return np.stack([joined[last[k] + 1 : last[k] + 1 + T, k] for k in range(T // 2)])

    def _put_omitted(self, dataset: xr.Dataset, runs: tuple[Run, ...], T: int) -> None:
        left_out = self.left_out(T)
        length = T - len(left_out[0])
        count, shape = sum(map(len, left_out)), (len(runs), self.cycles)
        found = {n: np.full(shape, np.nan) for n in ("resultant", "late", "p", "dip")}
        aligned = np.full((*shape, length), np.nan)
        for r, run in enumerate(runs):
            losses = {g: self.made(run)[f"omit-{g}"].losses.values for g in range(len(left_out))}
            for c in range(self.cycles):
                phases, dips, curves = [], [], []
                for g, documents in enumerate(left_out):
                    for j in documents:
                        slot = j - sum(k < j for k in documents)
                        wait = losses[g][: (c + 1) * length + 1, j]
                        cycle = wait[c * length + 1 :]
                        low = int(cycle.argmin())
                        phases.append(2 * np.pi * (low + 1 - slot) / length)
                        rise = cycle.max() - last_loss(run, self.begins(run), j)
                        dips.append((cycle.max() - cycle[low], rise))
                        curves.append(np.roll(cycle, length // 2 - slot + 1))
                R, direction = stats.resultant(np.array(phases))
                found["resultant"][r, c], found["p"][r, c] = R, stats.rayleigh(np.array(phases))
                found["late"][r, c] = direction / (2 * np.pi) * length
                fall, rise = np.array(dips).T
                found["dip"][r, c] = stats.share_of(fall.mean(), rise.mean())
                aligned[r, c] = np.mean(curves, axis=0)
        null = np.full(shape, stats.chance(count))
        resultant = Estimate(found["resultant"], p=found["p"], null=null, over="one run")
        estimate.put(dataset, "resultant", ("run", "cycle"), resultant, units="1")
        late = Estimate(found["late"], over="one run")
        estimate.put(dataset, "late", ("run", "cycle"), late, units="episodes after the turn")
        dip = Estimate(found["dip"], over="one run")
        estimate.put(dataset, "dip", ("run", "cycle"), dip, units="share of what was forgotten")
        place = np.arange(length) - length // 2
        dataset["place"] = place
        dataset["omitted"] = (("run", "cycle", "place"), aligned, ages.NATS | ages.EACH)
        dataset.attrs |= {"omitted_documents": count, "at_once": len(left_out[0])}

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Losses by age under each order; scores; documents left out, about their turn."""
        fig, panels = plots.mosaic([["loss", "score", "omitted"]])
        for i, name in enumerate(dataset.arm.values):
            y, label = dataset.loss.sel(arm=name), str(name).replace("_", " ")
            plots.line(panels["loss"], dataset.age, y, plots.colour(i), label, 1.5)
        panels["loss"].set(title="next epoch", xlabel="age, episodes", ylabel="nats/token")
        x = np.arange(dataset.sizes["arm"])
        for i, (reading, form) in enumerate((("curve", "o"), ("crossfitted", "s"))):
            score = estimate.get(dataset, "score", reading=reading)
            options = {"color": plots.colour(i), "label": reading}
            plots.points(panels["score"], x + 0.1 * i, score, form, **options)
        plots.zero(panels["score"])
        panels["score"].set_xticks(x, [str(a).replace("_", "\n") for a in dataset.arm.values])
        panels["score"].set(title="recovery at age T", ylabel="share of forgotten loss")
        for i, name in enumerate(dataset.run.values):
            part = dataset.omitted.sel(run=name, cycle=1)
            y = part - part.mean("place")
            plots.line(panels["omitted"], dataset.place, y, plots.colour(i), str(name), 1.5)
        panels["omitted"].axvline(0, color="0.6", lw=0.8)
        panels["omitted"].set(
            title="left out, first cycle", xlabel="episodes after its turn", ylabel="nats from mean"
        )
        for axes in panels.values():
            axes.legend()
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        said = []
        for name in dataset.arm.values:
            score = estimate.get(dataset, "score", arm=name, reading="curve")
            said.append(f"{str(name).replace('_', ' ')} {score}")
        text = f"Recovery at age T when training goes on in another order: {', '.join(said)}."
        if "fresh" in dataset.arm.values:
            fresh = estimate.get(dataset, "share", arm="fresh")
            text += f" On documents never seen {fresh} of that in the same order: a clock would "
            text += "keep all of it, a cue none."
        for name in dataset.attrs["left_out"]:
            text += f" Without the order {name}: there are too few documents for it."
        for name in dataset.run.values:
            one = estimate.get(dataset, "resultant", run=name, cycle=1)
            late = estimate.get(dataset, "late", run=name, cycle=1)
            text += (
                f" Of {dataset.attrs['omitted_documents']} documents left out of {name}, the "
                f"lowest losses come {late.value:+.1f} episodes from their turn, resultant "
                f"{one.with_test()}."
            )
        return text


def last_loss(run: Run, begins: int, document: int) -> float:
    """Of a document right after it was last trained on before the experiment begins."""
    last = int(np.flatnonzero(run.schedule.values[:begins] == document)[-1])
    return float(run.losses.values[last + 1, document])
