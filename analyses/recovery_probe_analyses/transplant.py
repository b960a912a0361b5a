"""Weights of one moment put into the network of another: which of them bring a document back?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import xarray as xr
from annotated_types import Ge, Le

from recovery_probe import Analysis, stats
from recovery_probe.analyze import ages, estimate, groups, plots
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.modules import parameter_blocks, parameter_kinds
from recovery_probe.analyze.needs import RUN, checkpoints, epochs, once_an_epoch
from recovery_probe.saying import bar, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recovery_probe import Run

SHARE = {"units": "share of the run's bump"}
WAYS = ("restored", "lost", "shapley")
EPISODES = {"units": "episodes"}
TITLES = {
    "restored": "restored: arrival's, at the peak",
    "lost": "lost: the peak's, at arrival",
    "shapley": "Shapley value",
}
EXACT = "Shapley values are exact."
PARTITIONS = ("kinds", "blocks")
SCALES = ("matrix norms", "matrix directions", "norm gains")
Cases = dict[int, tuple[int, int]]  # document -> episodes done at its peak, and at its arrival


@dataclass(frozen=True)
class Transplant(Analysis):
    """In the last wait of which the run has all, weights of a document's arrival (age T, right
    before its turn) are put into the network as it was at the document's peak, and the other way
    round; from checkpoints, between which the run is trained again once. The bump is the fall of
    the loss from peak to arrival, means over the documents looked at before any ratio; the age of
    the peak is where the mean loss of all other documents has its top in that wait, so that a
    document's own noise does not choose it. Intervals are bootstraps over documents.

    Groups of parameters: kinds (norms: with their biases; biases: all others; a tied unembedding is
    an embedding), blocks (of a deep network groups of consecutive ones, so that Shapley values need
    not be drawn), and `all`, of which restored and lost are exactly 1. By (run, group), as
    shares of the run's bump:

    - restored: how much of it this group of arrival, alone, brings at the peak;
    - lost: how much of it goes at arrival with this group of the peak, alone;
    - shapley: what it restores on average over all orders in which the groups of its partition,
      kinds or blocks, can be put in; these sum to what `all` restores. Exact where `orders`
      orders take no fewer passes; sampling_error (run, group): otherwise, the standard error of
      drawing so few, which the interval includes;
    - restored_random, lost_random, shapley_random: placebo, every parameter moved as far (2-norm)
      in a random direction.

    `matrix norms`: each weight matrix of the peak gets the 2-norm that it has at arrival, and keeps
    its direction; `matrix directions`: the other way round; `norm gains`: the weights of
    normalisations. These have no shapley.

    interaction, interaction_lost (run, partition): what `all` restores, or loses, minus the sum
    over groups. The control: the same swap between the same two ages of a document's wait of T
    episodes or more in the same epoch, in shares of the run's bump, the control having little of
    its own. NAME_difference (control, group): run minus control. bump (run): nats. document_NAME
    (run, document, group): nats of each document, NaN of those not looked at; peak_age (run,
    document); looked_at (run).

    Raises `Missing` unless `from_checkpoint`, and without a checkpoint.
    """

    # documents looked at, evenly spaced: each takes some hundred passes of one document, and those
    # that wait at once a copy of the weights each
    documents: Annotated[int, Ge(1), Le(10_000)] = 8
    # blocks are put in one by one, or as so many groups of consecutive ones where there are more
    blocks: Annotated[int, Ge(1), Le(10_000)] = 7
    # orders of the groups for Shapley values, half of them the others backwards; exact values where
    # these take no more passes (8 groups: from 38 on)
    orders: Annotated[int, Ge(4), Le(100_000)] = 40
    # run the model again from checkpoints, which takes torch and time
    from_checkpoint: bool = False

    name = "transplant"
    question = "Which weights bring a document back: of which modules, and is it their size?"
    null = """Weights moved as far in a random direction restore nothing, or less (restored_random
    and its like, which stand as the null). In the control, where nothing comes back, the same swap
    restores nothing of the run's bump. Were groups to act by themselves, interaction would be 0."""
    blind_spot = """The mixed networks were never trained: a group may fail alone because what it
    works with is not there, and restore more than all there is. Shapley values divide what groups
    do together, by convention. Between peak and arrival weights also drift, and learn other
    documents: that a group restores the loss says where, not why, features (H1) or a shared state
    that comes back (H2). Sizes of matrices (H5) are not the only scale: that of the logits (H4) may
    be made by directions. A random direction is not one in which training goes: any update of that
    size along the path may do more. Few documents: the bootstrap over 8 covers less than 95%, and
    all share one trajectory."""
    needs = (RUN, once_an_epoch, epochs(2), checkpoints())

    def compute(self, *runs: Run) -> xr.Dataset:
        T, cases, wait = runs[0].timeline.per_epoch, *self._cases(runs)
        found = [
            transplanted(run, own, self.orders, self.blocks)
            for run, own in zip(runs, cases, strict=True)
        ]
        labels = {among: list(own) for among, own in next(iter(found[0].values())).items()}
        nats = _arrays(found, labels, runs[0].config.documents.count)
        bump = nats.pop("bump")[..., 0]  # of all weights
        known = np.isfinite(bump)  # (run, document)
        peak_age = np.full(bump.shape, np.nan)
        for r, own in enumerate(cases):
            for document, (peak, arrival) in own.items():
                peak_age[r, document] = T - (arrival - peak)
        dataset = xr.Dataset(
            {
                "document_bump": (("run", "document"), bump, ages.NATS | ages.EACH),
                "peak_age": (("run", "document"), peak_age, EPISODES | ages.EACH),
                "looked_at": ("run", known.sum(axis=1), ages.SUM),
            },
            coords={
                "run": groups.labels(runs),
                "control": groups.labels(runs)[1:],
                "document": np.arange(bump.shape[1]),
                "group": [label for own in labels.values() for label in own],
                "among": ("group", [name for name, own in labels.items() for _ in own]),
                "partition": list(PARTITIONS),
            },
            attrs={
                "unit": "documents",
                "interval": "95% bootstrap over documents; of the bump studentised",
                "T": T,
                "wait": wait,
                **groups.compared(runs),
            },
        )
        mean = estimate.of_mean(bump.T, runs[0].rng("bootstrap"))
        estimate.put(dataset, "bump", "run", mean, mean_of="document_bump", **ages.NATS)
        _put_shares(dataset, nats, bump[0], runs[0])
        return dataset

    def _cases(self, runs: Sequence[Run]) -> tuple[list[Cases], int]:
        """Of each run the documents looked at, with their moments; and which wait it is, from 1:
        the last that all of them have whole. Each has a document in it that waits for T episodes or
        more: in epochs that have all documents once, waits are T long on average."""
        T, documents = runs[0].timeline.per_epoch, runs[0].config.documents.count
        done = groups.common(runs)
        wait, cases = done // T - 2, []
        of_waits = [
            stats.by_age(run.losses.values[: done + 1, :documents], run.schedule.values, documents)
            for run in runs
        ]
        curves = of_waits[0][0][wait]  # (document, age)
        curves = np.where(np.isfinite(curves), curves, 0.0)
        peaks = (curves.sum(axis=0) - curves)[:, : max(1, T - 1)].argmax(axis=1) + 1
        for _, begins in of_waits:
            known = np.flatnonzero(np.isfinite(begins[wait])).tolist()
            count = min(self.documents, len(known))
            looked_at = [known[i * len(known) // count] for i in range(count)]
            since = {j: int(begins[wait, j]) for j in looked_at}
            cases.append({j: (e + int(peaks[j]), e + T) for j, e in since.items()})
        return cases, wait + 1

    @plots.styled
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Shares by kind, by block, and of sizes: alone at the peak, alone at arrival, Shapley
        values; each beside the same swap in the controls, and a random displacement. Strokes of
        intervals that go far beyond all bars are cut."""
        among = dataset.among.values
        rows = {"kinds": ["all", "kinds"], "blocks": ["blocks"], "scales": ["scales"]}
        places = {row: np.flatnonzero(np.isin(among, parts)) for row, parts in rows.items()}
        layout = [[f"{way} {row}" for way in WAYS] for row in rows]
        layout[-1][-1] = "."  # of sizes there are no Shapley values
        heights = [len(which) for which in places.values()]
        height = 0.11 * (sum(heights) * (dataset.sizes["run"] + 1) + 12) / len(rows)
        fig, panels = plots.mosaic(layout, height=height, height_ratios=heights, sharex=True)
        for row, which in places.items():
            part = dataset.isel(group=which)
            for way in WAYS:
                if (axes := panels.get(f"{way} {row}")) is None:
                    continue
                _bars(axes, part, way)
                axes.set_yticks(range(len(which)), part.group.values if way == WAYS[0] else [])
                axes.set_title(TITLES[way] if row == "kinds" else "")
                lowest = row == ("blocks" if way == "shapley" else "scales")
                axes.tick_params(labelbottom=lowest)
                axes.set_xlabel("share of the run's bump" if lowest else "")
        if limits := _limits(dataset):
            panels[layout[0][0]].set_xlim(limits)
        handles, names = panels[layout[0][0]].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside lower center", ncols=len(names))
        return fig

    def verdict(self, dataset: xr.Dataset) -> str:
        run, *controls = (str(name) for name in dataset.run.values)
        bump, T = estimate.get(dataset, "bump", run=run), dataset.attrs["T"]
        text = (
            f"From the peak (age {_span(dataset.peak_age.sel(run=run))}) to arrival (age {T}) of "
            f"wait {dataset.attrs['wait']} the loss of {int(dataset.looked_at.sel(run=run))} "
            f"documents falls by {bump} nats."
        )
        whole = estimate.get(dataset, "restored", run=run, group="all").value
        if np.isnan(whole) or not bump.low > 0:
            return f"{text} That may be no bump: shares of it, as the figure has them, say nothing."
        for partition in PARTITIONS:
            names = dataset.group.values[dataset.among.values == partition]
            shares = {n: estimate.get(dataset, "shapley", run=run, group=n) for n in names}
            most = sorted(shares, key=lambda n: -shares[n].value)[:3]
            said = [f"{n} {shares[n]} ({_alone(dataset, run, n)})" for n in most]
            left = estimate.get(dataset, "interaction", run=run, partition=partition)
            text += (
                f" Of {partition}, most of it comes back with the weights at arrival of "
                f"{', '.join(said)}; interaction {left}."
            )
        said = [
            f"{name} {estimate.get(dataset, 'restored', run=run, group=name)}" for name in SCALES
        ]
        text += f" Alone at the peak, of size and direction: {', '.join(said)}."
        placebo = estimate.get(dataset, "restored_random", run=run, group="all")
        text += f" Placebos: moved at random as far, all weights restore {placebo}"
        for control in controls:
            count = int(dataset.looked_at.sel(run=control))
            there = estimate.get(dataset, "restored", run=control, group="all")
            text += f"; the same swap in {control} ({count} documents) {there}"
        return f"{text}. {_drawn(dataset)}"


def _arrays(
    found: Sequence[dict[int, Any]], labels: dict[str, list[str]], documents: int
) -> dict[str, stats.Floats]:
    """Number -> (run, document, group) nats, NaN of what there is not."""
    places = [(among, label) for among, own in labels.items() for label in own]
    names = {n for own in found[0].values() for a, label in places for n in own[a][label]}
    arrays = {n: np.full((len(found), documents, len(places)), np.nan) for n in sorted(names)}
    for r, of_run in enumerate(found):
        for document, own in of_run.items():
            for place, (among, label) in enumerate(places):
                for name, value in own[among][label].items():
                    arrays[name][r, document, place] = value
    return arrays


def _span(values: xr.DataArray) -> str:
    """`11 to 12`, or `11`, of those that are there."""
    there = np.unique(values.values[np.isfinite(values.values)].astype(int))
    return " to ".join(map(str, dict.fromkeys([*there[:1], *there[-1:]]))) or "not defined"


def _alone(dataset: xr.Dataset, run: str, group: str) -> str:
    """Of a group, what it does alone."""
    one, other = (estimate.get(dataset, way, run=run, group=group).value for way in WAYS[:2])
    return f"alone at the peak {one:.2f}; lost without it at arrival {other:.2f}"


def _drawn(dataset: xr.Dataset) -> str:
    """Of Shapley values, how exact they are."""
    most = float(dataset.sampling_error.max())
    return f"Shapley values have a sampling error of up to {most:.2g}." if most else EXACT


def _bars(axes: Axes, part: xr.Dataset, way: str) -> None:
    """A bar for each group and each run, and its placebo, with strokes for intervals."""
    series = [(n, estimate.get(p, way), c) for n, p, c in plots.by_run(part)]
    first = part.isel(run=0)
    series.append(("random displacement", estimate.get(first, f"{way}_random"), plots.HELD_OUT))
    height, y = 0.8 / len(series), np.arange(part.sizes["group"])
    for i, (label, found, colour) in enumerate(series):
        places = y + (i - (len(series) - 1) / 2) * height
        axes.barh(places, found.value, height, color=colour, alpha=0.75, label=label)
        axes.hlines(places, found.low, found.high, color="black", linewidth=0.7)
    axes.axvline(0, color=plots.HELD_OUT, linewidth=0.6)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(y) - 0.5, -0.5)


def _limits(dataset: xr.Dataset) -> tuple[float, float] | None:
    """Of the share that panels show: all bars, and intervals as far as twice the bump."""
    known = [estimate.get(dataset, f"{way}{n}") for way in WAYS for n in ("", "_random")]
    bars = np.concatenate([np.ravel(e.value) for e in known])
    ends = np.concatenate([np.ravel(end) for e in known for end in (e.low, e.high)])
    bars, ends = bars[np.isfinite(bars)], ends[np.isfinite(ends)].clip(-2, 2)
    if not len(bars):
        return None
    both = np.concatenate([bars, ends])
    return float(both.min()) - 0.1, float(both.max()) + 0.1


def _put_shares(
    dataset: xr.Dataset, nats: dict[str, stats.Floats], bump: stats.Floats, run: Run
) -> None:
    """Of (run, document, group) nats, and the run's own (document,) bumps."""

    def shares(parts: stats.Floats) -> Estimate:
        """(run, document, group) -> (run, group)."""
        found = [stats.ratio_of_means(part, bump, run.rng("bootstrap")) for part in parts]
        return Estimate(*np.stack(found, axis=1))

    for way in WAYS:
        own, random = nats[way], nats[f"{way}_random"]
        for name, values in ((way, own), (f"{way}_random", random)):
            dims = ("run", "document", "group")
            dataset[f"document_{name}"] = (dims, values, ages.NATS | ages.EACH)
        placebo = shares(random)
        found = replace(shares(own), null=placebo.value)
        estimate.put(dataset, way, ("run", "group"), found, **SHARE)
        estimate.put(dataset, f"{way}_random", ("run", "group"), placebo, **SHARE)
        minus = [stats.ratio_of_means(own[0], bump, run.rng("bootstrap"), c) for c in own[1:]]
        parts = np.array(minus).reshape(-1, 3, own.shape[-1]).transpose(1, 0, 2)
        difference = Estimate(*parts, null=np.zeros(parts.shape[1:]))
        estimate.put(dataset, f"{way}_difference", ("control", "group"), difference, **SHARE)
    among = dataset.among.values
    for way, name in (("restored", "interaction"), ("lost", "interaction_lost")):
        own = nats[way]
        sums = np.stack([own[..., among == p].sum(axis=-1) for p in PARTITIONS], axis=-1)
        left = shares(own[..., among == "all"] - sums)
        left = replace(left, null=np.zeros(left.value.shape))
        estimate.put(dataset, name, ("run", "partition"), left, **SHARE)
    # Documents have orders of their own.
    squares, count = nats["sampling_error"] ** 2, dataset.looked_at.values[:, None]
    whole = stats.mean_of_counted(bump)
    error = stats.share_of(np.sqrt(np.nansum(squares, axis=1)) / count, whole)
    dataset["sampling_error"] = (("run", "group"), error, SHARE)


def transplanted(
    run: Run, cases: Cases, permutations: int, blocks: int
) -> dict[int, dict[str, dict[str, dict[str, float]]]]:
    """Document -> among -> what is put in -> number -> nats (`recovery_probe.exchange`). The run is
    trained again once, from a checkpoint before the first of the moments that are asked for."""
    from recovery_probe import exchange
    from recovery_probe.machine import size_of, threads
    from recovery_probe.train import replay

    rows = {row for moments in cases.values() for row in moments}
    with threads(run.config.threads):
        training = replay.taken_up(run, min(rows), max(rows))
        parameters = training.model.parameters
        kinds = parameter_kinds(parameters)
        partitions = {"kinds": kinds, "blocks": parameter_blocks(parameters, blocks)}
        gains = [name for name in kinds.get("norms", []) if not name.endswith(".bias")]
        passes = exchange.passes(partitions.values(), permutations)
        seconds = exchange.seconds_of_a_pass(training) * passes * len(cases)
        at_once = max(sum(a <= row <= b for a, b in cases.values()) for row in rows)
        copies = sum(p.nbytes for p in parameters.values()) * (at_once + 3)
        say(
            f"{run.path}: weights of {len(cases)} documents are exchanged, {passes} passes of one "
            f"document each: about {seconds:.0f} s more; copies of the weights: {size_of(copies)}"
        )
        waiting: dict[int, Any] = {}
        found = {}
        with bar("transplant", passes * len(cases), "passes") as step:

            def visit(row: int) -> None:
                for document, (peak, arrival) in cases.items():
                    if row == peak:
                        here = {n: p.detach().to("cpu", copy=True) for n, p in parameters.items()}
                        waiting[document] = here
                    if row == arrival:
                        rng = run.rng(f"transplant, document {document}")
                        before = waiting.pop(document)
                        with exchange.Exchange(training, document, before, rng, step) as both:
                            found[document] = both.everything(partitions, gains, permutations)
                            found[document]["all"]["all"]["bump"] = both.bump

            agreed = replay.visited(run, training, rows, visit)
    say(f"{run.path}: {agreed}")
    return found
