"""Which episodes and which modules bring a document's loss down before its turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import xarray as xr
from annotated_types import Ge, Gt, Lt

from recovery_probe import Analysis, stats
from recovery_probe.analyze import ages, estimate, groups, plots, words
from recovery_probe.analyze.modules import module_groups
from recovery_probe.analyze.needs import RUN, recorded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recovery_probe import Run

RECORDER, NATS = "allocation", {"units": "nats"}
WHOLE, PREDECESSORS, OPPOSITE, REST = PARTS = ("whole", "predecessors", "opposite", "rest")
SIDES = ("fall", "help", "harm")
FAR = 0.1  # of residuals, as a share of loss changes: no split by module to rely on
FAR_OFF = (
    ", which is too much to rely on any split: the line from before an episode to after it was not "
    "followed closely enough (--allocation.line step follows that of each step)"
)


@dataclass(frozen=True)
class Allocation(Analysis):
    """Loss changes as the recorder `allocation` allocates them to episodes and modules, of the last
    epochs that all runs have it of. T: the episodes of an epoch; p: mid-wait, `window` of T
    (attribute `middle`); group: kinds of modules, blocks, all together (`total`).

    transfer (run, group, age): mean nats that an episode at that age adds to a document's loss, age
    episodes after the one on it, 0 its own; below 0 it helps. In a cycle that is T - age episodes
    before its turn. held_out (run, group): the same of held-out documents, of any episode.

    Of the waits of at least T episodes whose ages p to T all lie in these epochs, of a document
    their mean: fall (run, part, group), the nats by which its loss falls from age p to T, the sum
    of what the episodes in between take off; help and harm, what they take off and add, each
    module in each episode by itself, fall = help - harm. part: the last `predecessors` before age
    T; of the others those `opposite`, a quarter of a cycle or more from it either way; the rest;
    and the whole; episodes_of (part): how many these are. fall_difference, … (control, part,
    group): run minus control at equal age, of the documents that are counted in both.
    recorded_fall (run): of the losses themselves; counted (run), paired (control): documents.

    residual_share (run): the sizes of the residuals, what modules do not add up to, over the sizes
    of the loss changes, all documents and episodes.
    """

    # the share of a wait after which mid-wait is; as the run's outcome declares it when not given
    window: Annotated[float, Gt(0), Lt(1)] | None = None
    # so many episodes before a document's turn are its predecessors
    predecessors: Annotated[int, Ge(1)] = 3

    name = "allocation"
    question = "Which episodes, and which modules, bring a document's loss down before its turn?"
    null = """At equal age the control's episodes, on documents in no order, and its modules do the
    same: run minus control is 0, of every part of the fall, help and harm. Held-out documents are
    moved as much as trained ones if what is learned is common to all."""
    blind_spot = """An allocation is bookkeeping along the path that was taken: it adds up to the
    loss change, and does not say what would have happened without an episode or a module. What an
    episode does is the same on any path; its split by module is a convention, of the straight line
    from the weights before the episode to those after: step by step (`--allocation.line step`)
    attention and unembedding had a third more or less in a quickstart run, blocks a tenth. Help and
    harm are larger the more finely they are told apart. The episodes before a turn help in plain
    least squares too: features that align (H1) and a state that comes back (H2) are not told apart.
    The control's waits of T episodes or more begin earlier in an epoch; what a falling loss makes
    of that is in the difference. Of two epochs a document has a wait or two. The documents of one
    run share its weights: intervals say how much documents differ."""
    needs = (RUN, recorded(RECORDER, epochs=2))

    def compute(self, *runs: Run) -> xr.Dataset:
        first, config = runs[0], runs[0].config
        documents, T = config.documents.count, first.timeline.per_epoch
        window = config.outcome.window if self.window is None else self.window
        middle, done = ages.mid_wait(T, window), groups.common(runs)
        start = max(int(run.recorder(RECORDER).episodes_done[0]) for run in runs) - 1
        kept = [_Allocated(run, start, done) for run in runs]
        names, labels = list(kept[0].groups), groups.labels(runs)
        dataset = xr.Dataset(
            coords={
                "run": labels,
                "control": labels[1:],
                "group": names,
                "age": np.arange(T),
                "part": list(PARTS),
            },
            attrs={
                "T": T,
                "middle": middle,
                "episodes": [start, done],
                "predecessors": self.predecessors,
                "unit": "documents",
                "interval": "95% studentised bootstrap over documents",
                **groups.compared(runs),
            },
        )
        # (document, run, …), NaN of documents that do not count
        moved = np.stack([of.by_age(T) for of in kept], axis=1)
        held_out = np.stack([of.held_out() for of in kept], axis=1)
        mean = estimate.of_mean(moved, first.rng("bootstrap"))
        estimate.put(dataset, "transfer", ("run", "group", "age"), mean, **NATS)
        mean = estimate.of_mean(held_out, first.rng("bootstrap"))
        estimate.put(dataset, "held_out", ("run", "group"), mean, **NATS)
        places = _places(T, middle, self.predecessors)
        falls = [of.falls(places, T, middle) for of in kept]
        for side in SIDES:
            each = np.stack([of_run[side] for of_run in falls], axis=1)
            mean = estimate.of_mean(each, first.rng("bootstrap"))
            estimate.put(dataset, side, ("run", "part", "group"), mean, **NATS)
            more = estimate.of_mean(each[:, :1] - each[:, 1:], first.rng("bootstrap"))
            more = replace(more, null=np.zeros(more.value.shape))
            dims = ("control", "part", "group")
            estimate.put(dataset, f"{side}_difference", dims, more, **NATS)
        dataset["episodes_of"] = ("part", [len(those) for those in places.values()])
        whole = np.stack([of_run["recorded"] for of_run in falls], axis=1)
        mean = estimate.of_mean(whole, first.rng("bootstrap"))
        estimate.put(dataset, "recorded_fall", "run", mean, **NATS)
        counted, total = np.isfinite(whole), {"of_seeds": "sum"}
        dataset["counted"] = ("run", counted.sum(axis=0), total)
        dataset["paired"] = ("control", (counted[:, :1] & counted[:, 1:]).sum(axis=0), total)
        dataset["documents"] = ((), documents, total)
        dataset["residual_share"] = ("run", [of.residual_share() for of in kept])
        return dataset

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Transfer by age; the fall by part, with help and harm; and by group of modules."""
        T, middle = dataset.attrs["T"], dataset.attrs["middle"]
        fig, panels = plots.mosaic([["age", "age"], ["part", "group"]])
        left, right = panels["part"], panels["group"]
        kinds = [group for group in dataset.group.values if group != "total"]
        runs = dataset.sizes["run"]
        for r, (name, part, colour) in enumerate(plots.by_run(dataset)):
            beside = 0.8 * (r - (runs - 1) / 2) / runs
            moved = estimate.get(part.isel(age=slice(1, None)), "transfer", group="total")
            x = dataset.age.values[1:] + 0.15 * beside
            plots.points(panels["age"], x, moved, color=colour, ms=3, label=name)
            mean = float(part.held_out.sel(group="total"))
            line = {"color": colour, "linestyle": "--", "linewidth": 0.9}
            panels["age"].axhline(mean, label=f"{name}: held-out documents", **line)
            help, harm, fall = (
                estimate.get(part, side, group="total") for side in ("help", "harm", "fall")
            )
            at, width = np.arange(len(PARTS)) + beside, 0.75 / runs
            left.bar(at, help.value, width, color=colour, alpha=0.35)
            left.bar(at, -harm.value, width, color=colour, alpha=0.35)
            plots.points(left, at, fall, "o", color=colour)
            fall = estimate.get(part.sel(group=kinds), "fall", part=WHOLE)
            plots.points(right, np.arange(len(kinds)) + beside, fall, "o", color=colour)
        last = dataset.attrs["predecessors"]
        panels["age"].axvspan(middle - 0.5, T - 0.5, color=plots.HELD_OUT, alpha=0.1, linewidth=0)
        panels["age"].set(
            xlabel=f"age: episodes since its own (shaded: the fall, from age {middle} to {T})",
            ylabel="nats an episode",
            title="what an episode adds to a document's loss",
        )
        panels["age"].locator_params(axis="x", integer=True)
        left.set(
            xticks=range(len(PARTS)),
            xticklabels=["whole", f"last {last}", "opposite", "rest"],
            ylabel="nats",
            title="the fall; bars: help up, harm down",
        )
        right.set(xticks=range(len(kinds)), ylabel="nats", title="the fall, by module")
        right.set_xticklabels(kinds, rotation=45, ha="right")
        for axes in panels.values():
            plots.zero(axes)
        shown = panels["age"].get_legend_handles_labels()
        fig.legend(*shown, loc="outside lower center", ncols=4)
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        T, middle = dataset.attrs["T"], dataset.attrs["middle"]
        first, done = dataset.attrs["episodes"]

        def residual(part: xr.Dataset) -> str:
            share = part.residual_share.item()
            return "not defined" if np.isnan(share) else f"{share:.2%}"

        def clause(part: xr.Dataset) -> str:
            return (
                f"{_parts(part, 'fall')} ({int(part.counted)} of {int(part.documents)} documents); "
                f"{_sides(part, '')}{_most(part)}"
            )

        shares = ", ".join(words.by_run(dataset, residual, "{clause} in {run}"))
        text = (
            f"Episodes {first} to {done}. What modules do not add up to, of all loss changes: "
            f"{shares}{FAR_OFF if dataset.residual_share.max() > FAR else ''}. "
            f"Nats by which a document's loss falls from age {middle} to {T}: "
            f"{'. '.join(words.by_run(dataset, clause))}."
        )
        for control in dataset.control.values:
            part = dataset.sel(control=control)
            text += (
                f" Run minus control {control} at equal age: {_parts(part, 'fall_difference')} "
                f"({int(part.paired)} documents); {_sides(part, '_difference')}."
            )
        return f"{text} {ages.brackets(dataset)}"


def _parts(part: xr.Dataset, name: str) -> str:
    """`0.13 [0.11, 0.16], in the last 3 episodes 0.11 [0.09, 0.15], …`."""
    count = dict(zip(PARTS, part.episodes_of.values.tolist(), strict=True))
    said = {
        PREDECESSORS: f"in the last {count[PREDECESSORS]} episodes",
        OPPOSITE: f"in the {count[OPPOSITE]} on the opposite half of the cycle",
        REST: f"in the other {count[REST]}",
    }
    of = {each: str(estimate.get(part, name, part=each, group="total")) for each in PARTS}
    return ", ".join([of[WHOLE], *(f"{said[each]} {of[each]}" for each in said if count[each])])


def _sides(part: xr.Dataset, ends: str) -> str:
    help, harm = (
        estimate.get(part, f"{side}{ends}", part=WHOLE, group="total") for side in ("help", "harm")
    )
    return f"help {help}, harm {harm}"


def _most(part: xr.Dataset) -> str:
    """The kind and the block of the largest fall, where there are some."""
    fall = part.fall.sel(part=WHOLE)
    blocks = [group for group in part.group.values if group.startswith("block ")]
    kinds = [group for group in part.group.values if group not in {*blocks, "total"}]
    largest = [
        str(names[int(np.nanargmax(fall.sel(group=names)))])
        for names in (kinds, blocks)
        if len(names) > 1 and np.isfinite(fall.sel(group=names)).any()
    ]
    if not largest:
        return ""
    found = (f"{name} {estimate.get(part, 'fall', part=WHOLE, group=name)}" for name in largest)
    return f"; most by {' and '.join(found)}"


def _places(T: int, middle: int, predecessors: int) -> dict[str, stats.Ints]:
    """Part of the fall -> the ages of its episodes, from `middle` on."""
    whole = np.arange(middle, T)
    near = whole >= T - predecessors
    far = ~near & (np.minimum(whole, T - whole) * 4 >= T)
    which = (near | True, near, far, ~near & ~far)
    return {part: whole[these] for part, these in zip(PARTS, which, strict=True)}


class _Allocated:
    """What is allocated of a run, from episode `start` to before `done`."""

    def __init__(self, run: Run, start: int, done: int) -> None:
        self.trained, self.start, self.done = run.config.documents.count, start, done
        kept = run.recorder(RECORDER).allocated.sel(episodes_done=slice(start + 1, done))
        self.each = kept.values  # (episode, module, document)
        self.groups = module_groups(kept.module, blocks=True)
        self.losses = run.losses.values[start : done + 1]
        age, wait = stats.ages_at(run.schedule.values, self.trained)
        self.age, self.wait = age[start:done], wait[start:done]  # (episode, T)

    def of_groups(self, values: stats.Floats) -> stats.Floats:
        """(document, group, episode) of (episode, module, document)."""
        sums = [values[:, which].sum(axis=1) for which in self.groups.values()]
        return np.stack(sums).transpose(2, 0, 1)

    def by_age(self, T: int) -> stats.Floats:
        """(document, group, age): mean allocation of the episodes at each age."""
        each = self.of_groups(self.each[..., : self.trained])
        of_ages = [np.where((self.age == age).T[:, None], each, np.nan) for age in range(T)]
        return np.stack([stats.mean_of_counted(each) for each in of_ages], axis=-1)

    def held_out(self) -> stats.Floats:
        """(document, group): mean allocation of all episodes; of held-out documents, NaN for as
        many rows as make them the documents of a mean."""
        each = self.of_groups(self.each[..., self.trained :]).mean(axis=-1)
        return each if len(each) else np.full((1, len(self.groups)), np.nan)

    def falls(self, places: dict[str, stats.Ints], T: int, middle: int) -> dict[str, stats.Floats]:
        """fall, help and harm (document, part, group), and `recorded` (document,), nats: means over
        a document's waits that count, NaN without."""
        episode = np.arange(self.start, self.done)[:, None]
        begins = episode - self.age
        inside = (begins + middle >= self.start) & (begins + T <= self.done)
        counts = inside & (self.wait >= T) & (self.age >= middle) & (self.age < T)
        cases = (counts & (self.age == T - 1)).sum(axis=0).astype(float)  # of each document
        cases[cases == 0] = np.nan

        def of(values: stats.Floats) -> stats.Floats:
            each = self.of_groups(values[..., : self.trained])
            parts = [
                np.where((counts & np.isin(self.age, those)).T[:, None], each, 0.0).sum(axis=-1)
                for those in places.values()
            ]
            return np.stack(parts, axis=1) / cases[:, None, None]

        change = np.diff(self.losses[:, : self.trained], axis=0)
        harm, help = (of(np.maximum(sign * self.each, 0.0)) for sign in (1, -1))
        return {
            "fall": -of(self.each),
            "help": help,
            "harm": harm,
            "recorded": -np.where(counts, change, 0.0).sum(axis=0) / cases,
        }

    def residual_share(self) -> float:
        change = np.diff(self.losses, axis=0)  # (episode, document), held-out ones too
        moved = np.abs(change).sum()
        off = np.abs(self.each.sum(axis=1) - change).sum()
        return float(off / moved) if moved > 0 else np.nan
