"""What the network would have done with its features held as they were: linearised, and trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import xarray as xr
from annotated_types import Ge

from recovery_probe import Analysis, Missing, stats
from recovery_probe.analyze import estimate, groups, plots, words
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.needs import RUN, checkpoints, once_an_epoch
from recovery_probe.saying import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

NATS, SHARE = {"units": "nats per token"}, {"units": "share of forgotten loss"}
READINGS, NETWORKS = ("curve", "crossfitted"), ("network", "linearised")
LEAST = 0.1  # a score below this is too little recovery to ask for a share of
BOUND = 0.1  # the smallest difference of Q from 1 that matters


@dataclass(frozen=True)
class Linearised(Analysis):
    """From the weights θ₀ after `episodes`, the linearised network f(θ₀) + J(θ₀)(θ - θ₀), f the
    logits, is trained as the run was from there on, to its end: with its optimizer in the state
    that it had, its documents in their order, its interventions. Its features and its kernel
    J(θ₀)J(θ₀)ᵀ cannot change. Losses of all documents after each episode are compared with those
    that the run has of the same episodes, at equal ages, over the last wait of T episodes or more
    that each document both begins and ends in between: the same waits from every θ₀ that is early
    enough. In a cycle one epoch after θ₀ is for the visits, and the next for the waits.

    All (run, episodes_done), θ₀ by how many episodes were done:

    - score (…, network, reading): of the `network` itself and `linearised`, the share of what was
      forgotten that has come back at age T, as age_curve has it: of the mean `curve`, or
      `crossfitted`;
    - q (…, reading): the linearised one's over the network's, Q; with no value where the network's
      is below .1. q_minus_1 (…, reading): less 1, for tests against ±.1;
    - r2: 1 - Σ (linearised - network)² / Σ (network - its mean)², over ages of the mean loss: how
      much of the network's age curve the linearised one's is; below 0 where less than its mean
      is, no value where the curve moves by less than .01 nats;
    - loss (…, network, age): means over documents; counted: how many, of all documents of runs;
    - trained: for how many episodes the linearised network was, fewer than `asked` (episodes_done)
      where its losses left the region in which they mean anything.

    Raises `Missing` unless `from_checkpoint`, without such a checkpoint, or for a network with
    dropout; `InputError` where the checkpoint's losses are not those recorded.
    """

    # after how many episodes, of those that have a checkpoint; when not given, the first, and the
    # last from which the run has trained for `epochs` more, of those that end an epoch
    episodes: tuple[int, ...] = ()
    # from θ₀ to the run's end, at least; a wait takes one after the visit that it begins with
    epochs: Annotated[int, Ge(2)] = 2
    # run the model again from checkpoints, which takes torch and time
    from_checkpoint: bool = False

    name = "linearised"
    question = "Does the network recover without any feature learning, with its kernel held fixed?"
    null = """Where recovery needs features that change, the linearised network has none of it: Q is
    0. Where a fixed kernel suffices Q is 1, and R² too. A network that is linear in its weights has
    Q = 1 exactly."""
    blind_spot = """Q near 1 says that features need not change after θ₀, not that they are none of
    training's: from the start nothing is learned beforehand, from a later θ₀ what was learned until
    then is held. So 0 from the start and 1 from later on is what features do that are learned early
    and then kept. From the start the linearised network may also learn and forget less than the
    network, so that there is less to come back: the age curves show it, a ratio does not. A Q
    between says how much, not which features. It keeps the softmax: linear are the logits. Where a
    learning rate is stable for the network alone, Q is not defined, or small, for that reason. A
    fixed kernel that suffices leaves open what brings the loss back: a shared state that returns
    (H2), savings whatever the order (H3) and relief of extra interference (H7) look alike here.
    The documents of one run share its weights: intervals say how much documents differ."""
    needs = (RUN, once_an_epoch, checkpoints())

    def compute(self, *runs: Run) -> xr.Dataset:
        times, done = self._times(runs), groups.common(runs)
        trained = [[linearised(run, time, done - time) for time in times] for run in runs]
        return numbers(trained, runs, times)

    def _times(self, runs: Sequence[Run]) -> list[int]:
        """Episodes done at each θ₀."""
        T, done = runs[0].config.documents.count, groups.common(runs)
        before = [t for t in groups.shared_checkpoints(runs) if t + self.epochs * T <= done]
        for time in self.episodes:
            if time not in before:
                raise Missing(
                    f"{runs[0].path}: no checkpoint after {time} episodes from which {self.epochs} "
                    f"epochs were trained; there are some after {_listed(before)}"
                )
        whole = [time for time in before if time % T == 0]
        if not self.episodes and not whole:
            raise Missing(
                f"{runs[0].path}: no checkpoint at the end of an epoch from which {self.epochs} "
                f"epochs were trained; it has {done} episodes"
            )
        return list(self.episodes) or list(dict.fromkeys([whole[0], whole[-1]]))

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Loss by age of both networks, from each θ₀; Q and R² beside one another."""
        fig, panels, below = plots.above(dataset, "q", "r2")
        colours = plots.by_epoch(dataset.sizes["episodes_done"])
        for axes, (name, part, _) in zip(panels, plots.by_run(dataset), strict=True):
            if axes is not panels[0]:
                axes.sharey(panels[0])
            for time, colour in zip(dataset.episodes_done.values, colours, strict=True):
                for network, style in zip(NETWORKS, ("-", "--"), strict=True):
                    loss = part.loss.sel(episodes_done=time, network=network)
                    label = f"{network}, from {time} episodes" if axes is panels[0] else None
                    axes.plot(dataset.age, loss, style, color=colour, label=label)
            axes.set(title=name, xlabel="age (episodes since the visit)", ylabel="loss (nats)")
        x = np.arange(dataset.sizes["episodes_done"])
        for r, (name, part, colour) in enumerate(plots.by_run(dataset)):
            for reading, form, fill in zip(READINGS, "os", (colour, "white"), strict=True):
                q, place = (
                    estimate.get(part, "q", reading=reading),
                    x + 0.2 * r + 0.1 * (fill == "white"),
                )
                label = f"Q, {name}, {reading}" if np.isfinite(q.value).any() else None
                plots.points(below["q"], place, q, form, color=colour, mfc=fill, label=label)
            r2 = estimate.get(part, "r2")
            plots.points(below["r2"], x + 0.2 * r, r2, "^", color=colour, label=f"R², {name}")
        if not np.isfinite(dataset.q.values).any():
            plots.note(below["q"], "Q is not defined: too little recovery")
        for axes, label in ((below["q"], "Q"), (below["r2"], "R² of the age curve")):
            plots.zero(axes)
            axes.axhline(1, color=plots.HELD_OUT, linewidth=0.8, linestyle="--")
            axes.set(ylabel=label, xlabel="θ₀ after (episodes)", xlim=(-0.5, len(x) - 0.5))
            axes.set_xticks(x, dataset.episodes_done.values)
        fig.legend(loc="outside lower center", ncols=2)
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        clauses = []
        for time in dataset.episodes_done.values:
            here = dataset.sel(episodes_done=time)
            each = words.by_run(here, _clause, "{run}: {clause}")
            clauses.append(f"Held as it is after {time} episodes. {'. '.join(each)}.")
        text = " ".join(clauses)
        if (short := (dataset.trained < dataset.asked).values).any():
            text += (
                f" The linearised network left the region where its losses mean anything in "
                f"{short.sum()} of {short.size} trainings: those have no Q."
            )
        if dataset.attrs["unit"] == "documents":
            text += " Brackets: the spread over documents of one run, which decides nothing."
        return text


def _clause(part: xr.Dataset) -> str:
    net, lin = (
        estimate.get(part, "score", network=network, reading=READINGS[0]) for network in NETWORKS
    )
    q, off, r2 = (
        estimate.get(part, name, reading=READINGS[0]) for name in ("q", "q_minus_1", "r2")
    )
    text = (
        f"the score of the network is {net}, of the linearised one {lin} ({int(part.counted)} "
        f"documents count); Q {q}, R² of the age curve {r2}"
    )
    if np.isnan(q.value):
        return f"{text}; Q needs a network that recovers by {LEAST} or more, and whole waits"
    if q.n is None:
        return text
    said = off.decided("above 1", "below 1, so that features that change have a part", BOUND)
    return f"{text}; Q less 1: {said}"


def _listed(times: Sequence[int]) -> str:
    return ", ".join(map(str, times)) or "none"


def linearised(run: Run, episodes_done: int, episodes: int) -> tuple[stats.Floats, int]:
    """(episodes + 1, T + H) losses, nats, of the network linearised at the checkpoint after
    `episodes_done` episodes, as it is trained for so many more; NaN from where its losses mean
    nothing, and how many episodes it came. Says beforehand how long it will take."""
    from recovery_probe.errors import Diverged
    from recovery_probe.linearised import Linearised
    from recovery_probe.machine import reproducible, threads
    from recovery_probe.record.sink import Unwritten
    from recovery_probe.recorders.recording import clock
    from recovery_probe.train.announce import step_seconds
    from recovery_probe.train.replay import Compared, again
    from recovery_probe.training import Training

    with threads(run.config.threads):
        training = Training.at(run, episodes_done)
        model = training.model
        with reproducible(model.device):
            try:
                training.model = Linearised.of(model)
            except Missing as why:
                raise Missing(f"{run.path}: {why}") from None
            each = run.config.steps * step_seconds(training)  # first, as first passes are slow
            started = clock(model.device)
            Compared(run).commit(episodes_done, training.evaluate())
            each += clock(model.device) - started
        say(
            f"{run.path}: the network, linearised after {episodes_done} episodes, is trained for "
            f"{episodes}: about {each * episodes:.0f} s"
        )
        stop = episodes_done + episodes
        try:
            again(training, (), (), Unwritten(), stop, "linearised")
        except Diverged as why:
            print(f"{run.path}: the linearised network: {why}", file=sys.stderr)
            training.rows[training.done :] = np.nan
            return training.rows[episodes_done : stop + 1], training.done - 1 - episodes_done
    return training.rows[episodes_done : stop + 1], episodes


def numbers(
    trained: Sequence[Sequence[tuple[stats.Floats, int]]],
    runs: Sequence[Run],
    times: Sequence[int],
) -> xr.Dataset:
    """Of what `linearised` gives of each run at each θ₀, trained to the last episode that all runs
    have."""
    T, dims, stop = runs[0].config.documents.count, ("run", "episodes_done"), groups.common(runs)
    shape = (len(runs), len(times))
    curves = np.full((*shape, len(NETWORKS), T, T), np.nan)  # …, document, age
    for r, t in np.ndindex(shape):
        start = times[t]
        own = runs[r].losses.values[start : stop + 1, :T]
        for n, losses in enumerate((own, trained[r][t][0][:, :T])):
            curves[r, t, n] = _last_waits(losses, runs[r].schedule.values[start:stop], T)
    both = np.isfinite(curves).all(axis=(2, 4))  # …, document
    dataset = xr.Dataset(
        {
            "loss": (
                (*dims, "network", "age"),
                stats.mean_of_counted(np.where(both[:, :, None, :, None], curves, np.nan), axis=3),
                NATS,
            ),
            "counted": (dims, both.sum(axis=2), {"of_seeds": "sum"}),
            "trained": (dims, [[n for _, n in of_run] for of_run in trained], {"of_seeds": "each"}),
        },
        coords={
            "run": groups.labels(runs),
            "episodes_done": list(times),
            "asked": ("episodes_done", [stop - time for time in times]),
            "network": list(NETWORKS),
            "reading": list(READINGS),
            "age": np.arange(1, T + 1),
        },
        attrs={
            "T": T,
            "unit": "documents",
            "interval": "95% percentile bootstrap over documents, the same drawn of both networks",
            **groups.compared(runs),
        },
    )
    found = np.array(
        [
            [_of_curves(curves[r, t][:, both[r, t]], runs[0]) for t in range(len(times))]
            for r in range(len(runs))
        ]
    )
    score, q, r2 = np.split(np.moveaxis(found, 2, 0), [4, 6], axis=-1)  # value, low and high first
    score, nothing = score.reshape(3, *shape, len(NETWORKS), len(READINGS)), np.zeros(q.shape[1:])
    estimate.put(dataset, "score", (*dims, "network", "reading"), Estimate(*score), **SHARE)
    estimate.put(dataset, "q", (*dims, "reading"), Estimate(*q, null=nothing))
    estimate.put(dataset, "q_minus_1", (*dims, "reading"), Estimate(*(q - 1), null=nothing))
    estimate.put(dataset, "r2", dims, Estimate(*r2[..., 0]))
    return dataset


def _last_waits(losses: stats.Floats, schedule: stats.Ints, T: int) -> stats.Floats:
    """(document, age): each document's last whole wait of T episodes or more; NaN without one."""
    curves, begins = stats.by_age(losses, schedule, T)
    last = np.full((T, T), np.nan)
    for own, begin in zip(curves, begins, strict=True):
        last = np.where(np.isfinite(begin)[:, None], own, last)
    return last


def _of_curves(curves: stats.Floats, run: Run) -> stats.Floats:
    """(value, low and high; 7) of (network, document, age) losses: scores (network, reading), Q of
    both readings, R²."""
    count = curves.shape[1]
    if not count:
        return np.full((3, 7), np.nan)

    def of(drawn: stats.Ints) -> stats.Floats:
        network, linearised = means = [stats.resampled_means(own, drawn) for own in curves]
        cross_fitted = [stats.cross_fitted(own, drawn) for own in curves]
        scores = [
            np.stack([cross, stats.share_of(*stats.own_tops(mean))], axis=-1)
            for cross, mean in zip(cross_fitted, means, strict=True)
        ]  # (resamples, reading)
        q = scores[1] / np.where(scores[0] >= LEAST, scores[0], np.nan)
        off = ((linearised - network) ** 2).mean(axis=1)
        moves = network.max(axis=1) - network.min(axis=1) >= stats.MIN_FORGETTING
        r2 = 1 - off / np.where(moves, network.var(axis=1), np.nan)
        return np.concatenate([*scores, q, r2[:, None]], axis=1)

    (value,) = of(np.arange(count)[None])
    return np.stack([value, *stats.bootstrap_interval(of, count, run.rng("bootstrap"))])
