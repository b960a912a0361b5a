"""The page that brings them together: of each explanation of recovery what it predicts, what was
measured, and whether that supports it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from recovery_probe import Missing, plugins
from recovery_probe.analyze import ages, estimate, plots
from recovery_probe.analyze.analysis import Analysis
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.experiments import NEEDS, Experiment
from recovery_probe.experiments.rules import CLAIMS, RULES, Word, together
from recovery_probe.saying import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run
    from recovery_probe.train.plan import Point

EXPERIMENTS = ("clock_or_cue", "remove_subspace", "optimizer_memory")
FROM_CHECKPOINT = ("linearised", "kernel_by_lag", "transplant")
RECORDED = ("readout", "state_return", "allocation")
# What each takes beside training, in epochs of the run's training, of every run: measured on the
# quickstart. Of linearised, for each epoch trained.
COSTS = {
    "linearised": 2.5,
    "kernel_by_lag": 4.0,
    "transplant": 7.0,
    "readout": 4.0,
    "state_return": 4.5,
    "allocation": 5.0,
}
LAST = 2  # epochs that are trained again
# These measure shares of recovery.
SHARES = ("readout", "transplant", "clock_or_cue", "remove_subspace", "optimizer_memory")
COLOURS = {"supports": 2, "contradicts": 1}  # of `plots.colour`


def _from_the_start(d: xr.Dataset) -> tuple[Estimate, float]:
    if d.episodes_done.values[0]:
        raise Missing("linearised: not from the start")
    return _q(d, 0)


def _later_on(d: xr.Dataset) -> tuple[Estimate, float]:
    return _q(d, -1)


def _q(d: xr.Dataset, place: int) -> tuple[Estimate, float]:
    where = {"run": d.run.values[0], "episodes_done": d.episodes_done.values[place]}
    return estimate.get(d, "q", reading="curve", **where), np.nan


def _growth(d: xr.Dataset) -> tuple[Estimate, float]:
    control = float(d.growth[1]) if d.sizes["run"] > 1 else np.nan
    return estimate.get(d, "growth", run=d.run.values[0]), control


def _state(d: xr.Dataset) -> tuple[Estimate, float]:
    found = d.more_than_age.sel(part="both")
    control = float(found[1]) if d.sizes["run"] > 1 else np.nan
    return estimate.get(d, "more_than_age", part="both", run=d.run.values[0]), control


def _beyond(d: xr.Dataset) -> tuple[Estimate, float]:
    return estimate.get(d, "beyond", rank=d["rank"].values[-1]), 0.0


def _fall(d: xr.Dataset) -> tuple[Estimate, float]:
    return _of_pair(d, "matched_fall"), 0.0


def check_recovery(d: xr.Dataset | None) -> None:
    """Raise `Missing` where no loss surely comes back, beyond the control's: of next to nothing
    shares say nothing."""
    fall = Estimate(np.nan, np.nan) if d is None else _of_pair(d, "matched_fall")
    if fall.low is None or not fall.low > 0:
        raise Missing(f"no recovery to have a share of, the matched fall is {fall}")


def _excess(d: xr.Dataset) -> tuple[Estimate, float]:
    return _of_pair(d, "excess_of_fall"), np.nan


def _of_pair(d: xr.Dataset, name: str) -> Estimate:
    if not d.sizes["control"]:
        raise Missing(f"{name}: no control")
    return estimate.get(d, name, control=d.control.values[0], epoch=ages.last_epoch(d))


def _left(d: xr.Dataset) -> tuple[Estimate, float]:
    return estimate.get(d, "left", run=d.run.values[0], reading="both"), np.nan


def _norms(d: xr.Dataset) -> tuple[Estimate, float]:
    found = estimate.get(d, "restored", run=d.run.values[0], group="matrix norms")
    placebo = estimate.get(d, "restored_random", run=d.run.values[0], group="matrix norms").value
    return found, float(placebo)


def _memory(d: xr.Dataset) -> tuple[Estimate, float]:
    return estimate.get(d, "left", arm="reset_episode"), np.nan


def _fresh(d: xr.Dataset) -> tuple[Estimate, float]:
    if "fresh" not in d.arm.values:
        raise Missing("clock_or_cue: too few documents for an order of fresh ones")
    return estimate.get(d, "share", arm="fresh"), 1.0


# In the order of `RULES`: the measure, and what its placebo or its control has.
READ: tuple[Callable[[xr.Dataset], tuple[Estimate, float]], ...] = (
    *(
        _from_the_start,
        _growth,
        _later_on,
        _state,
        _beyond,
        _fall,
        _left,
        _norms,
        _memory,
        _excess,
        _fresh,
    ),
)


@dataclass(frozen=True)
class Mechanism(Experiment):
    """Has all that tells explanations apart measured of a run, where it is not there yet: the
    experiments clock_or_cue, remove_subspace and optimizer_memory; linearised, kernel_by_lag and
    transplant from checkpoints; readout, state_return and allocation by training the last two
    epochs again. Each stands in RUN/analyses and in the report with its own figure, null and blind
    spot; what is there already, of the same settings, is not done again.

    measured (prediction): each number with its interval, over documents of one run, over seeds of
    several; beside (prediction): what its placebo or control has. supports, contradicts
    (prediction, end): where the interval must lie, written down in `experiments/rules` before any
    was looked at. What was not measured, and why: attribute `not_measured`.
    """

    name = "mechanism"
    question = "Which explanations of recovery does the evidence support?"
    null = """None: a run without recovery has nothing to explain, and what its parts measure is not
    defined."""
    blind_spot = """Explanations need not exclude one another, and one that is on no list is not
    found. A prediction that holds supports an explanation as far as no other predicts it too: H1
    and H2 differ in `linearised` and `kernel_by_lag` alone, and are both true of features that are
    learned early and then kept. A kernel that grows as much in the control grows by what neighbours
    are, not by the cycle. The rules are the toolkit's own, round
    numbers; the intervals of one run are over its documents, which share its weights. A measure
    is of one place of a run, mostly its last two epochs."""
    needs = NEEDS

    def arms(self, run: Run) -> Mapping[str, Point]:
        return {}  # those of its parts

    def parts(self) -> list[Analysis]:
        """What measures, with the settings that it has here."""
        found: list[Analysis] = [
            plugins.made(plugins.find("experiments", name), {"after": self.after}, name)
            for name in EXPERIMENTS
        ]
        for name in ("age_curve", *RECORDED, *FROM_CHECKPOINT):
            values = {"from_checkpoint": True} if name in FROM_CHECKPOINT else {}
            found.append(plugins.made(plugins.find("analyses", name), values, name))
        return found

    def before(self, run: Run, controls: Sequence[Run]) -> None:
        """Have measured what is not there yet. Says first where there may be nothing to explain."""
        from recovery_probe.analyze.perform import analyze
        from recovery_probe.experiments.conduct import conduct
        from recovery_probe.train.replay import replay

        (curve,) = (part for part in self.parts() if part.name == "age_curve")
        try:
            if curve.stored(run) is None:
                analyze(run, controls, [curve])
            check_recovery(curve.stored(run))
        except Missing as missing:
            say(f"mechanism: {run.path}: {missing}; {', '.join(SHARES)} will decide nothing")
        for one in (run, *controls):
            start = int(one.timeline.last(LAST))
            if lacking := _unrecorded(one):
                replay(one, record=lacking, episodes=(start, one.episodes_done))
        for part in self.parts():
            if part.stored(run) is not None:
                continue
            say(f"mechanism: {part.name} of {run.path}")
            try:
                if isinstance(part, Experiment):
                    conduct([part], run, controls)
                else:
                    analyze(run, controls, [part])
            except Missing as missing:
                print(f"mechanism: without {part.name}: {missing}", file=sys.stderr)

    def seconds(self, run: Run, controls: Sequence[Run]) -> float:
        costs = COSTS | {"linearised": COSTS["linearised"] * (run.config.epochs + LAST)}
        lacking = {part.name for part in self.parts() if part.stored(run) is None}
        again = sum(costs[name] for name in FROM_CHECKPOINT if name in lacking)
        epochs = 0.0
        for one in (run, *controls):
            own = _unrecorded(one)
            epochs += again + sum(costs[name] for name in own) + (LAST if own else 0)
        each = run.provenance.get("seconds", 0) / max(1, run.episodes_done)
        return float(epochs * run.timeline.per_epoch * each)

    def compute(self, *runs: Run) -> xr.Dataset:
        run, found, beside, lacking = runs[0], [], [], {}
        datasets = {part.name: part.stored(run) for part in self.parts()}
        for rule, read in zip(RULES, READ, strict=True):
            try:
                if (dataset := datasets[rule.part]) is None:
                    raise Missing(f"{rule.part} could not be done")
                if rule.part in SHARES:
                    check_recovery(datasets["age_curve"])
                one, other = read(dataset)
            except Missing as missing:
                one, other = Estimate(np.nan, np.nan, np.nan), np.nan
                lacking[f"{rule.hypothesis}, {rule.measure}"] = str(missing)
            found.append([one.value, *(np.nan if b is None else b for b in (one.low, one.high))])
            beside.append(other)
        dataset = xr.Dataset(
            {
                "beside": ("prediction", np.array(beside), {"about": "placebo or control"}),
                **{
                    side: (("prediction", "end"), np.array([getattr(r, side) for r in RULES]))
                    for side in ("supports", "contradicts")
                },
            },
            coords={
                "prediction": np.arange(len(RULES)),
                "hypothesis": ("prediction", [rule.hypothesis for rule in RULES]),
                "measure": ("prediction", [rule.measure for rule in RULES]),
                "part": ("prediction", [rule.part for rule in RULES]),
            },
            attrs={
                "unit": "documents",
                "interval": "95%, as each part has it",
                "not_measured": [f"{name}: {why}" for name, why in lacking.items()],
            },
        )
        value, low, high = np.array(found).T
        # By definition, as where nothing is remembered: an interval of one point.
        exact = np.isfinite(value) & ~np.isfinite(low) & (dataset.part.values == "optimizer_memory")
        low, high = np.where(exact, value, low), np.where(exact, value, high)
        estimate.put(dataset, "measured", ("prediction",), Estimate(value, low, high))
        return dataset

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Each measure with its interval; where it would support its explanation, and contradict
        it; its placebo or control."""
        fig, panels = plots.mosaic([["rules"]], height=0.36 * len(RULES) + 0.8)
        axes = panels["rules"]
        y = -np.arange(len(RULES), dtype=float)
        left, right = -0.5, 1.5
        for place, rule in zip(y, RULES, strict=True):
            for side, colour in COLOURS.items():
                least, most = np.clip(getattr(rule, side), left, right)
                axes.barh(place, most - least, 0.7, least, color=plots.colour(colour), alpha=0.15)
        found = estimate.get(dataset, "measured")
        value, low, high = (np.clip(v, left, right) for v in (found.value, *bounds(dataset)))
        axes.hlines(y, low, high, color="0.2", lw=1.5)
        axes.plot(value, y, "o", color="0.2", ms=5, label="measured, 95%")
        axes.plot(
            np.clip(dataset.beside, left, right),
            y,
            "D",
            mfc="none",
            color="0.45",
            ms=5,
            label="placebo or control",
        )
        words = decisions(dataset)
        labels = [f"{r.hypothesis}  {r.measure}" for r in RULES]
        axes.set_yticks(y, labels)
        for place, word in zip(y, words, strict=True):
            axes.text(right + 0.03, place, word, va="center", fontsize=8)
        axes.set(
            xlim=(left, right),
            xlabel="measure; shaded where it supports (green) or contradicts (orange)",
        )
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        words = decisions(dataset)
        said = []
        for hypothesis, claim in CLAIMS.items():
            own = [i for i, rule in enumerate(RULES) if rule.hypothesis == hypothesis]
            numbers = "; ".join(
                f"{RULES[i].measure} {estimate.get(dataset, 'measured', prediction=i)}: {words[i]}"
                for i in own
            )
            said.append(f"{hypothesis} ({claim}): {together([words[i] for i in own])}. [{numbers}]")
        text = " ".join(said)
        place = next(i for i, rule in enumerate(RULES) if rule.hypothesis == "H3")
        fall = estimate.get(dataset, "measured", prediction=place)
        if not fall.low > 0:
            text = f"There may be nothing to explain: the matched fall is {fall} nats. {text}"
        if "measured_n" not in dataset:
            text += " One run: intervals are over its documents, and another seed may differ."
        for line in dataset.attrs["not_measured"]:
            text += f" Not measured: {line}."
        return text


def _unrecorded(run: Run) -> list[str]:
    """What a run has yet to be trained again for."""
    return [name for name in RECORDED if name not in run.recorders]


def decisions(dataset: xr.Dataset) -> list[Word]:
    """What each measure says of its prediction."""
    return [
        rule.decide(float(low), float(high))
        for rule, low, high in zip(RULES, *bounds(dataset), strict=True)
    ]


def bounds(dataset: xr.Dataset) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """(prediction,) each: where the interval of each measure begins and ends. Of seeds that all
    have the same value, as where nothing is remembered, it is that point."""
    found = estimate.get(dataset, "measured")
    same = np.zeros(len(RULES), dtype=bool) if found.sd is None else np.asarray(found.sd) == 0
    return np.where(same, found.value, found.low), np.where(same, found.value, found.high)
