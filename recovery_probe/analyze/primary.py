"""What was declared before the runs began, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from recovery_probe.analyze import ages, estimate
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.words import number
from recovery_probe.record.run import Run
from recovery_probe.settings import Outcome

ANALYSIS = "age_curve"  # which the declared quantities are of
WORDS = {
    "matched_fall": "matched fall",
    "gain": "gain on arrival",
    "excess": "excess in mid-wait",
    "score": "cross-fitted recovery score",
}


def primary(runs: Sequence[Run], dataset: xr.Dataset) -> dict[str, Any]:
    """The outcome that the runs' settings declare, of what `age_curve` found of them: `declared`
    and `doubts`, sentences, and `found`, one record for each control: `control`, `epoch`, `value`,
    the estimate's other parts, and `text` and `said`, which say it."""
    outcome = runs[0].config.outcome
    name = "score_difference" if outcome.primary == "score" else outcome.primary
    epoch = outcome.epoch or ages.last_epoch(dataset)
    units = "" if outcome.primary == "score" else "nats"
    found = []
    for control in dataset.control.values.tolist() if epoch in dataset.epoch else []:
        one = estimate.get(dataset, name, control=control, epoch=epoch)
        values = {part: number(v) for part, v in one.parts.items() if part not in estimate.BY_SEED}
        words = ("more than the control", "less than the control")
        said = {"text": str(one), "said": one.decided(*words, outcome.smallest, units)}
        said["seeds"] = _of_seeds(dataset, name, one, {"control": control, "epoch": epoch})
        found.append(
            {"control": control, "epoch": epoch, "value": number(one.value), **values, **said}
        )
    return {
        "quantity": outcome.primary,
        "declared": _declared(outcome),
        "doubts": _doubts(runs, outcome, dataset),
        "found": found,
    }


def _of_seeds(dataset: xr.Dataset, name: str, one: Estimate, place: dict[str, Any]) -> str:
    """What so many seeds can find, and what their spread comes of; nothing of one run."""
    if one.n is None:
        return ""
    text = f"{one.n} such seeds find a mean of {one.detectable:.2g} in 80% of cases."
    known = (f"{name}_{part}" for part in ("seed_variance", "document_variance"))
    sds = [float(dataset[n].sel(place)) ** 0.5 for n in known if n in dataset]
    if len(sds) == 2 and np.isfinite(sds).all():
        effective = float(dataset[f"{name}_effective_documents"].sel(place))
        text += (
            f" Standard deviation of seeds {sds[0]:.2g}, of documents within them {sds[1]:.2g}: "
            f"the documents of a run count as {effective:.1f} independent ones."
        )
    return text


def _declared(outcome: Outcome) -> str:
    """The table in a sentence."""
    wait = f"epoch {outcome.epoch}" if outcome.epoch else "the last epoch whose wait ends"
    unit = "" if outcome.primary == "score" else " nats"
    stop = "whatever they show" if outcome.stop == "fixed" else outcome.stop
    return (
        f"{WORDS[outcome.primary]} of {wait}, from {outcome.window:.3g} of the wait to the turn, "
        f"run minus control; what matters is {outcome.smallest:g}{unit} or more; {outcome.seeds} "
        f"seed{'s' * (outcome.seeds != 1)}, {stop}"
    )


def _doubts(runs: Sequence[Run], outcome: Outcome, dataset: xr.Dataset) -> list[str]:
    """Why what was found is not what was declared, where it is not."""
    doubts = []
    if changed := [str(run.path) for run in runs if not run.declared]:
        doubts.append(
            f"{', '.join(changed)}: the settings do not hold what was declared before the first "
            "step: this is no primary outcome"
        )
    if others := [str(r.path) for r in runs if r.config.outcome != outcome]:
        doubts.append(f"{', '.join(others)}: declared another outcome than {runs[0].path}")
    if len(runs) != outcome.seeds:
        few = "not yet the number declared" if len(runs) < outcome.seeds else "more than declared"
        doubts.append(
            f"{len(runs)} of {outcome.seeds} seeds, {few}: what is said of them is exploratory"
        )
    if dataset.attrs["middle"] != ages.mid_wait(dataset.attrs["T"], outcome.window):
        doubts.append(f"age_curve was asked for another window: age {dataset.attrs['middle']}")
    if outcome.epoch and not np.isin(outcome.epoch, dataset.epoch):
        doubts.append(f"epoch {outcome.epoch} has no wait that ends: nothing was found")
    if not dataset.sizes["control"]:
        doubts.append("there is no control: train one with --control shuffled")
    return doubts
