"""Losses by age, of a run beside its controls at equal age and equal time: what the picture draws,
what a report says first, and what the analysis `age_curve` is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from recovery_probe import stats
from recovery_probe.analyze import estimate, groups
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.errors import Missing

if TYPE_CHECKING:
    from recovery_probe.record.run import Run

NATS, SHARE = {"units": "nats per token"}, {"units": "share of forgotten loss"}
EACH, SUM = {"of_seeds": "each"}, {"of_seeds": "sum"}
READINGS = ("crossfitted", "curve", "pooled")
PARTS = ("matched_fall", "gain", "excess")


def numbers(*runs: Run, window: float | None = None) -> xr.Dataset:
    """What the analysis `age_curve` describes, of a run and its controls. `window`: the share of a
    wait after which mid-wait is; as the run's outcome declares it, when not given. Attribute `T`:
    the episodes of an epoch, and the longest age. Raises `Missing` when no document of the run has
    come back yet after so many."""
    documents, T = runs[0].config.documents.count, runs[0].timeline.per_epoch
    names = groups.labels(runs)
    middle = mid_wait(T, runs[0].config.outcome.window if window is None else window)
    curves, begins = _stacked(runs, documents, T)
    if not np.isfinite(begins[0]).any():
        raise Missing(
            f"{runs[0].path}: {runs[0].episodes_done} of {runs[0].schedule.size} episodes are "
            f"done, and no document has come back yet after {T} episodes or more"
        )
    ours = np.full_like(curves[1:], np.nan)  # (control, epoch, document, age)
    for moved, when in zip(ours, begins[1:], strict=True):
        moved[:] = stats.at_times(curves[0], begins[0], when)
    theirs = np.where(np.isfinite(ours), curves[1:], np.nan)
    paired = np.isfinite(ours[..., 0])  # (control, epoch, document)
    dataset = xr.Dataset(
        {
            "loss": (("run", "epoch", "age"), stats.mean_of_counted(curves, axis=2), NATS | EACH),
            "counted": (("run", "epoch"), np.isfinite(begins).sum(axis=2), SUM),
            "paired": (("control", "epoch"), paired.sum(axis=2), SUM),
            "documents": ((), documents, SUM),
            "waits": ("end", _waits(runs[0], T), {"description": "shortest and longest case"}),
        },
        coords={
            "run": names,
            "control": names[1:],
            "reading": list(READINGS),
            "part": list(PARTS),
            "epoch": np.arange(1, curves.shape[1] + 1),
            "age": np.arange(1, T + 1),
            "document": np.arange(documents),
        },
        attrs={
            "unit": "documents",
            "interval": "95% bootstrap over documents, studentised for means, percentile for "
            "scores and shares",
            "T": T,
            "middle": middle,
            **_awaited(runs),
            **groups.compared(runs),
        },
    )
    for name, side in (("run_loss", ours), ("control_loss", theirs)):
        mean = stats.mean_of_counted(side, axis=2)
        dataset[name] = (("control", "epoch", "age"), mean, NATS | EACH)
    _put_scores(dataset, curves, runs)
    _put_parts(dataset, ours, theirs, runs[0])
    return dataset


def _awaited(runs: Sequence[Run]) -> dict[str, str]:
    """The control that will be trained when the run is done."""
    controls = runs[0].provenance.get("controls", [])
    waits = len(runs) == 1 and controls and runs[0].status == "running"
    return {"awaited": Path(controls[0]).name} if waits else {}


def mid_wait(T: int, window: float) -> int:
    """The age that is a share of a wait of T episodes."""
    return min(max(1, round(window * T)), max(1, T - 1))


def _waits(run: Run, T: int) -> stats.Ints:
    """(2,): the shortest and the longest wait of T episodes or more."""
    turns = stats.turns(run.schedule.values, run.config.documents.count)
    each = np.concatenate([np.diff(episodes) for episodes in turns])
    cases = each[each >= T]
    return np.array([cases.min(), cases.max()] if len(cases) else [T, T])


def turn(dataset: xr.Dataset) -> str:
    """After how many episodes a document's turn comes: `20`, or `20 to 23` in no cycle."""
    shortest, longest = int(dataset.waits.min()), int(dataset.waits.max())
    return f"{shortest} to {longest}" if longest > shortest else str(shortest)


def _is_turn(dataset: xr.Dataset) -> bool:
    """Whether the last age is right before a document's turn."""
    return turn(dataset) == str(dataset.attrs["T"])


def _stacked(runs: Sequence[Run], documents: int, T: int) -> tuple[stats.Floats, stats.Floats]:
    """`stats.by_age` of each, (run, epoch, document, age) and (run, epoch, document), as far as all
    have got: NaN of waits that one has and another has not."""
    rows = groups.common(runs) + 1
    found = [
        stats.by_age(run.losses.values[:rows, :documents], run.schedule.values, documents, T)
        for run in runs
    ]
    waits = max(len(begins) for _, begins in found)
    curves = np.full((len(runs), waits, documents, T), np.nan)
    begins = np.full((len(runs), waits, documents), np.nan)
    for r, (own, since) in enumerate(found):
        curves[r, : len(own)], begins[r, : len(own)] = own, since
    return curves, begins


def _put_scores(dataset: xr.Dataset, curves: stats.Floats, runs: Sequence[Run]) -> None:
    """score (run, reading, epoch)."""
    found = np.full((3, len(runs), len(READINGS), curves.shape[1]), np.nan)  # value and bounds
    for r, run in enumerate(runs):
        for n, each in enumerate(curves[r]):
            whole = each[np.isfinite(each[:, 0])]  # (document, age)
            if len(whole):
                found[:, r, :, n] = np.stack(_scores(whole, run.rng("bootstrap")), axis=1)
    estimate.put(dataset, "score", ("run", "reading", "epoch"), Estimate(*found), **SHARE)


def _scores(curves: stats.Floats, rng: np.random.Generator) -> list[stats.Floats]:
    """Value, low and high of each reading, of (document, age) losses."""

    def of_curve(drawn: stats.Ints) -> stats.Floats:
        return stats.share_of(*stats.own_tops(stats.resampled_means(curves, drawn)))

    def scored(of: Callable[[stats.Ints], stats.Floats]) -> stats.Floats:
        (value,) = of(np.arange(len(curves))[None])
        return np.array([value, *stats.bootstrap_interval(of, len(curves), rng)])

    return [
        scored(lambda drawn: stats.cross_fitted(curves, drawn)),
        scored(of_curve),
        stats.ratio_of_sums(*stats.own_tops(curves), rng),
    ]


def _put_parts(dataset: xr.Dataset, ours: stats.Floats, theirs: stats.Floats, run: Run) -> None:
    """matched_fall, gain, excess and forgotten (control, epoch), and those of each document; share
    (control, part, epoch) and excess_of_fall (control, epoch)."""
    middle, dims = dataset.attrs["middle"], ("control", "epoch")
    each = dict(zip(PARTS, stats.matched(ours, theirs, middle), strict=True))
    forgotten = ours[..., middle - 1] - ours[..., 0]  # (control, epoch, document)
    for name, values in {**each, "forgotten": forgotten}.items():
        dataset[f"document_{name}"] = ((*dims, "document"), values, NATS)
        mean = estimate.of_mean(np.moveaxis(values, -1, 0), run.rng("bootstrap"))
        if name == "forgotten":
            estimate.put(dataset, name, dims, mean, **NATS)
            continue
        mean = replace(mean, null=np.zeros(forgotten.shape[:2]))
        estimate.put(dataset, name, dims, mean, mean_of=f"document_{name}", **NATS)

    def ratio(part: stats.Floats, whole: stats.Floats) -> Estimate:
        found = np.empty((3, *part.shape[:2]))
        for place in np.ndindex(part.shape[:2]):
            found[:, *place] = stats.ratio_of_sums(part[place], whole[place], run.rng("bootstrap"))
        return Estimate(*found)

    _put_difference(dataset, ours, theirs, run)
    shares = estimate.stack([ratio(each[name], forgotten) for name in PARTS])
    estimate.put(dataset, "share", ("part", *dims), shares, **SHARE)
    of_fall = ratio(each["excess"], each["matched_fall"])
    estimate.put(dataset, "excess_of_fall", dims, of_fall, units="share of the matched fall")


def _put_difference(
    dataset: xr.Dataset, ours: stats.Floats, theirs: stats.Floats, run: Run
) -> None:
    """score_difference (control, epoch): the cross-fitted score of the run minus the control's, of
    the documents that are compared, drawn in both at once."""
    found = np.full((3, *ours.shape[:2]), np.nan)
    for place in np.ndindex(ours.shape[:2]):
        paired = np.isfinite(ours[place][:, 0])
        own, other = ours[place][paired], theirs[place][paired]  # (document, age)

        def of(drawn: stats.Ints, own: stats.Floats = own, other: stats.Floats = other) -> Any:
            return stats.cross_fitted(own, drawn) - stats.cross_fitted(other, drawn)

        if len(own) > 1:
            (value,) = of(np.arange(len(own))[None])
            bounds = stats.bootstrap_interval(of, len(own), run.rng("bootstrap"))
            found[:, *place] = value, *bounds
    difference = Estimate(*found, null=np.zeros(found.shape[1:]))
    estimate.put(dataset, "score_difference", ("control", "epoch"), difference, **SHARE)


def last_epoch(dataset: xr.Dataset) -> int:
    """The last epoch of which pairs with the first control are known, or, without any, cases of
    the run: half as many, at least, as of the epoch with most. While a run is trained its newest
    epoch has a few documents, and they are those that came first."""
    known = dataset.counted.values[0]
    if dataset.sizes["control"] and dataset.paired.values[0].any():
        known = dataset.paired.values[0]
    return int(dataset.epoch.values[np.flatnonzero(2 * known >= known.max())[-1]])


def headline(dataset: xr.Dataset) -> str:
    """What a newcomer is told first: the score, then gain and excess, in sentences."""
    epoch, T = last_epoch(dataset), dataset.attrs["T"]
    run, *controls = (str(name) for name in dataset.run.values)
    curve, cross = _scores_of(dataset, run, epoch)
    when = "before a document's turn"
    arrival = "On arrival"
    if not _is_turn(dataset):
        when = f"within {T} episodes, before turns that come after {turn(dataset)}"
        arrival = f"After {T} episodes"
    text = (
        f"Epoch {epoch}: {curve} of what was forgotten comes back {when} "
        f"(averaged curve; cross-fitted, which noise does not raise: {cross})"
    )
    for control in controls:
        curve, cross = _scores_of(dataset, control, epoch)
        text += f"; in {control}, at equal age, {curve} ({cross})"
    text += "."
    for control in controls:
        fall, gain, excess = (
            estimate.get(dataset, name, control=control, epoch=epoch) for name in PARTS
        )
        paired = int(dataset.paired.sel(control=control, epoch=epoch))
        if np.isnan(gain.value):
            text += f" {_unpaired(control, T)}"
            continue
        text += (
            f" {arrival} a document is {_than(gain, 'better', 'worse')} off than in {control} at "
            f"equal age and time (gain {gain}{_doubt(gain)}); in mid-wait, at age "
            f"{dataset.attrs['middle']}, it is {_than(excess, 'worse', 'better')} "
            f"(excess {excess}{_doubt(excess)}). In between its loss falls by {fall} nats more "
            f"than there, both together: {_said(fall, gain, excess)}. {paired} of "
            f"{int(dataset.documents)} documents are compared: of the others no wait of {T} "
            f"episodes or more is known in {control}."
        )
    return f"{text} {brackets(dataset)}"


def lead(dataset: xr.Dataset) -> str:
    """What is to be seen, for somebody who has never heard of it."""
    epoch, (run, *controls) = last_epoch(dataset), map(str, dataset.run.values)
    text = "Anticipatory recovery: does a document that was forgotten come back before its turn?"
    own, *others = (_scores_of(dataset, name, epoch)[0].value for name in (run, *controls[:1]))
    if np.isnan(own):
        return f"{text} In {run}, epoch {epoch}, nothing was forgotten that could."
    when = "right before it" if _is_turn(dataset) else f"after {dataset.attrs['T']} episodes"
    text += (
        f" Of what was forgotten in {run}, epoch {epoch}, {round(own * 100)}% has come back {when}"
    )
    if others:
        share = "not defined" if np.isnan(others[0]) else f"{round(others[0] * 100)}%"
        text += f"; in {controls[0]}, at equal age, {share}"
    several = dataset.attrs["unit"].endswith("seeds")
    return f"{text}." + ("" if several else " One run decides nothing.")


def three_numbers(dataset: xr.Dataset) -> list[tuple[str, str, str]]:
    """Label, value and explanation of the score, the gain and the excess, beside the first
    control."""
    epoch, T = last_epoch(dataset), dataset.attrs["T"]
    run, *controls = (str(name) for name in dataset.run.values)
    curve, cross = _scores_of(dataset, run, epoch)
    value, so_far = str(curve), ""
    if (counted := int(dataset.counted.values[0][epoch - 1])) < int(dataset.documents):
        so_far = f" Of {counted} of {int(dataset.documents)} documents."
    if controls:
        value += f"; {controls[0]} at equal age {_scores_of(dataset, controls[0], epoch)[0]}"
    when, own = "right before their turn", "its own, when its turn comes,"
    if not _is_turn(dataset):
        when = f"{T} episodes after their own (their turn comes after {turn(dataset)})"
        own = f"its own (its turn comes after {turn(dataset)})"
    found = [
        (
            "Recovery",
            value,
            f"Share of what documents forgot that has come back {when}, epoch "
            f"{epoch}, averaged curve; cross-fitted, which noise does not raise: {cross}.{so_far}",
        )
    ]
    if not controls:
        why = "not defined: no control; train one with --control shuffled"
        if dataset.attrs.get("awaited"):
            why = f"comes when {dataset.attrs['awaited']} is trained, which is after this run"
        return [*found, ("Gain on arrival", why, ""), ("Excess in mid-wait", why, "")]
    for name, label, said in (
        (
            "gain",
            "Gain on arrival",
            f"{T} episodes after {own} a document is so much better off than in {{}}",
        ),
        (
            "excess",
            "Excess in mid-wait",
            f"{dataset.attrs['middle']} episodes after its own a "
            "document is so much worse off than in {}",
        ),
    ):
        found_here = estimate.get(dataset, name, control=controls[0], epoch=epoch)
        text = said.format(controls[0]) + " at equal age and time."
        text += f" {brackets(dataset)}" * (name == "excess")
        value = _unpaired(controls[0], T) if np.isnan(found_here.value) else f"{found_here} nats"
        found.append((label, value, text))
    return found


def _scores_of(dataset: xr.Dataset, run: str, epoch: int) -> list[Estimate]:
    return [
        estimate.get(dataset, "score", run=run, reading=reading, epoch=epoch)
        for reading in ("curve", "crossfitted")
    ]


def _than(nats: Estimate, more: str, less: str) -> str:
    return f"{abs(nats.value):.2f} nats per token {more if nats.value >= 0 else less}"


def _doubt(nats: Estimate) -> str:
    several = nats.n is not None and not np.isnan(nats.low)
    return ", not told from 0" if several and nats.low <= 0 <= nats.high else ""


def _said(fall: Estimate, gain: Estimate, excess: Estimate) -> str:
    """How much of the bump, the matched fall, is forgetting that the fixed order itself caused."""
    if fall.n is not None and not fall.low > 0:
        return "no bump that several seeds tell from 0"
    if fall.value < stats.MIN_FORGETTING:
        return "there is no bump"
    if fall.low is not None and fall.low <= 0:
        return "no bump that its documents tell from 0"
    cause = "of this bump is forgetting that the fixed order itself caused"
    if excess.value <= 0:
        return f"none {cause}"
    if gain.value <= 0:
        return f"all {cause}"
    return f"{excess.value / fall.value:.0%} {cause}"


def _unpaired(control: str, T: int) -> str:
    return (
        f"Gain and excess against {control} are not defined: no document has both two whole waits "
        f"here and, near them, one of {T} episodes or more there."
    )


def brackets(dataset: xr.Dataset) -> str:
    unit = dataset.attrs["unit"]
    if unit.endswith("seeds"):
        return f"Brackets: 95% over {unit}."
    return "Brackets: the spread over documents of one run; another seed may differ by more."
