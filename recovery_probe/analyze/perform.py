"""Analyses done and written: their datasets, figures, one summary and one page."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from recovery_probe import plugins
from recovery_probe.analyze import ages, baseline, multiplicity, plots, primary, report, twins
from recovery_probe.analyze.across import across
from recovery_probe.analyze.analysis import Analysis
from recovery_probe.analyze.groups import match, same_weights
from recovery_probe.errors import HookError, InputError, Missing
from recovery_probe.record.run import Run
from recovery_probe.record.store import write_json, write_text, write_zarr
from recovery_probe.saying import along, bar, on_terminal, say

LONG = 10  # seconds of an analysis, after which a plain line says that it is done

# These come first, in the summary and in the report; the others by name.
FIRST = ("age_curve", "recovery", "loss_curves", "online_loss")
# What summary.json holds beside the analyses, whose names these cannot be.
KEPT = ("headline", "primary", "near_twin", "least_squares")
RESERVED = ("runs", "controls", "analyses", "not_done", *KEPT)


def analyze(
    runs: Run | Sequence[Run],
    controls: Sequence[Run] = (),
    analyses: Sequence[str | type[Analysis] | Analysis] = (),
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | os.PathLike[str] | None = None,
    from_checkpoint: bool = False,
    anew: bool = True,
    formats: Sequence[str] = ("html",),
) -> dict[str, Any]:
    """Do `analyses` on a run, or on several that differ in their seed alone, beside their controls.

    An analysis is named (as installed, or `file.py:NAME`), or given as its class or an instance
    with its settings. When none is, all installed ones that need a run, with `options` as their
    settings, by name: one that a run lacks something for, or that fails, is then left out, and why
    is told in the summary under `not_done`.
    `from_checkpoint` lets analyses run the model again, which takes torch and time. Unless `anew`,
    what is there of a run by itself, of the same settings, is not done again. Those that need no
    run are done without: `analyze([], analyses=["toy_model"], out="toy")`.

    Writes, under `out/analyses`, NAME.zarr, NAME.png, .svg and .pdf for each and one summary.json
    for all, then `out/report.html` (and `report.md`, as `formats` says). `out` is the run's own
    directory when there is one run. What other calls wrote of other analyses stays. Returns what
    summary.json holds.

    Raises `InputError`, before any work, for a control that differs in more than its schedule,
    for runs that differ in more than their seed, for none or several without `out`, and for an
    analysis whose name the summary needs; `Missing` when a run lacks what an analysis asked for by
    name needs; `HookError` when one asked for by name fails.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    for warning in same_weights([*runs, *controls]):
        print(warning, file=sys.stderr)
    groups = match(runs, controls)
    not_done: dict[str, str] = {}
    chosen = (
        [instance(a) for a in analyses] if analyses else _default(runs, options or {}, not_done)
    )
    if len(runs) != 1 and out is None:
        raise InputError(f"{len(runs)} runs, one report: say where it goes with --out DIR")
    place = Path(out or runs[0].path)
    for analysis in chosen:
        if analysis.name in RESERVED:
            raise InputError(
                f"an analysis cannot be named {analysis.name!r}: summary.json holds "
                f"{', '.join(RESERVED)} of its own"
            )
    if from_checkpoint:
        chosen = [_from_checkpoint(analysis) for analysis in chosen]
    for run in [*runs, *controls]:
        run.check()
    folder = place / "analyses"
    datasets = {}
    with bar("analysing", len(chosen), "analyses") as step:
        for analysis in chosen:
            step(0, label=f"analysing: {analysis.name}")
            started = time.monotonic()
            with _failures(analysis.name, not_done, bool(analyses)):
                datasets[analysis] = (
                    _of_seeds(analysis, groups, anew) if analysis.needs else analysis()
                )
            step()
            seconds = time.monotonic() - started
            if seconds > LONG and not on_terminal():
                say(f"analysed {analysis.name}: {seconds:.0f} s")
    # Not before: another call may have written what it found meanwhile.
    old = _read_summary(folder / "summary.json")
    about: dict[str, Any] = old.get("analyses", {})
    summaries = {name: old[name] for name in about}
    tried = {analysis.name for analysis in chosen}
    before = {name: why for name, why in old.get("not_done", {}).items() if name not in tried}
    not_done = before | not_done
    if not analyses and len(runs) == 1:  # what was found from checkpoints is so still
        for analysis in chosen:
            if analysis.name in about and _from_checkpoint(analysis).stored(runs[0]) is not None:
                not_done.pop(analysis.name, None)
    multiplicity.correct(datasets)
    kept = {name: old[name] for name in KEPT if name in old}
    if runs:
        kept |= _beside(groups, datasets, folder, kept)
    for analysis, dataset in along(datasets.items(), "drawing", len(datasets), "figures"):
        with _failures(analysis.name, not_done, bool(analyses)):
            summaries[analysis.name], about[analysis.name] = _write(analysis, dataset, folder)
    about = {name: facts for name, facts in about.items() if name not in not_done}
    summary = {
        "runs": {str(r.path): {"status": r.status, "episodes": r.episodes_done} for r in runs},
        "controls": [str(c.path) for _, own in groups for c in own],
        **{name: summaries[name] for name in sorted(about, key=_order)},
        "analyses": {name: about[name] for name in sorted(about, key=_order)},
        **kept,
        "not_done": not_done,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", summary)
    for kind in formats:
        text = report.WRITERS[kind](groups, summary, folder)
        write_text(place / f"report.{kind}", text)
    return summary


def _of_seeds(
    analysis: Analysis, groups: Sequence[tuple[Run, list[Run]]], anew: bool
) -> xr.Dataset:
    """What an analysis finds of every seed, made one. Of several seeds, those that lack what it
    needs are left out and named, as long as two do not."""
    if not groups:
        return analysis()
    found, lacking = [], []
    for run, own in groups:
        try:
            known = None if anew else analysis.stored(run)
            found.append(analysis(run, *own) if known is None else known)
        except Missing as missing:
            lacking.append((run, missing))
    if lacking and len(found) < 2:
        raise lacking[0][1]
    reasons = [f"{run.path}: {str(why).removeprefix(f'{run.path}: ')}" for run, why in lacking]
    return across(found, reasons)


def _beside(
    groups: Sequence[tuple[Run, list[Run]]],
    datasets: dict[Analysis, xr.Dataset],
    folder: Path,
    kept: dict[str, Any],
) -> dict[str, Any]:
    """What a report says beside the analyses: what is to be seen first, what was declared, what
    rounding alone does, and what plain least squares does; `kept` is what earlier calls said of
    other analyses."""
    runs: list[Run] = [run for run, _ in groups]
    told: dict[str, Any] = {}
    twins.put(datasets, groups)
    if by_age := [d for a, d in datasets.items() if a.name == primary.ANALYSIS]:
        numbers = [list(row) for row in ages.three_numbers(by_age[0])]
        told["headline"] = {"lead": ages.lead(by_age[0]), "numbers": numbers}
        told["primary"] = primary.primary(runs, by_age[0])
    if any(run.twins for run in runs):
        names = {analysis.name for analysis in datasets}
        before = [said for said in kept.get("near_twin", []) if said.partition(":")[0] not in names]
        told["near_twin"] = [*before, *twins.near(datasets)]
    if "simulated" not in runs[0].provenance:
        folder.mkdir(parents=True, exist_ok=True)
        rows = kept.get("least_squares", {}).get("rows", [])
        told["least_squares"] = baseline.least_squares(runs[0], datasets, folder, rows)
    return told


def instance(analysis: str | type[Analysis] | Analysis) -> Analysis:
    """The analysis that is named, or given as its class, with its default settings. Raises
    `InputError` where it is none."""
    if isinstance(analysis, Analysis):
        return analysis
    kind: type[Analysis] = plugins.find("analyses", analysis)
    lacking = [n for n in ("name", "question", "null", "blind_spot") if not hasattr(kind, n)]
    if lacking:
        raise InputError(f"{analysis!r}: its class says no {', no '.join(lacking)}")
    return plugins.made(kind, {}, kind.name)


def _from_checkpoint(analysis: Analysis) -> Analysis:
    if not hasattr(analysis, "from_checkpoint"):
        return analysis
    return replace(analysis, from_checkpoint=True)  # type: ignore[call-arg]


def _write(analysis: Analysis, dataset: xr.Dataset, folder: Path) -> tuple[Any, Any]:
    """Store, figures; what the summary holds of it, and what the report needs to tell of it."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset.attrs = {"runs": [], "controls": []} | dataset.attrs
    dataset.attrs |= {
        "analysis": analysis.name,
        "settings": plugins.settings_of(analysis),
        "question": analysis.question,
        "null": analysis.null,
        "blind_spot": analysis.blind_spot,
    }
    _write_dataset(dataset, folder / f"{analysis.name}.zarr")
    plots.write(analysis.plot(dataset), folder / analysis.name)
    summary = analysis.summary(dataset)
    verdict = {k: v for k, v in summary.items() if k == "verdict"}
    said = {"tables": report.tables(dataset), "row": report.row(analysis, dataset)}
    return summary, dataset.attrs | verdict | said


def _default(
    runs: Sequence[Run], options: Mapping[str, Mapping[str, Any]], not_done: dict[str, str]
) -> list[Analysis]:
    """The installed analyses that need a run; one that cannot be loaded is told in `not_done`."""
    if not runs:
        raise InputError("analyze needs a run directory; train one first, or see --list")
    known = []
    for name in plugins.installed("analyses"):
        try:
            known.append(plugins.made(plugins.find("analyses", name), options.get(name, {}), name))
        except (Exception, SystemExit) as error:
            not_done[name] = f"failed: {type(error).__name__}: {error}"
    return sorted((a for a in known if a.needs), key=lambda a: _order(a.name))


@contextlib.contextmanager
def _failures(name: str, not_done: dict[str, str], asked_for: bool) -> Iterator[None]:
    """Enter in `not_done` why an analysis was not done; raise it when that is a mistake of the
    user's, or the analysis was asked for by name."""
    try:
        yield
    except InputError as error:
        if asked_for or not isinstance(error, Missing):
            raise
        not_done[name] = str(error)
    except (Exception, SystemExit) as error:  # a third party's analysis does as it likes
        not_done[name] = f"failed: {type(error).__name__}: {error}"
        if asked_for:
            raise HookError(f"analysis {name} {not_done[name]}") from error


def _read_summary(path: Path) -> dict[str, Any]:
    """What an earlier call wrote; nothing, and a word, where that is damaged."""
    if not path.exists():
        return {}
    try:
        old = json.loads(path.read_text("utf-8"))
        if set(old["analyses"]) <= set(old) and isinstance(old["not_done"], dict):
            return dict(old)
    except (ValueError, TypeError, KeyError):
        pass
    print(f"{path}: damaged; what earlier calls found is left out", file=sys.stderr)
    return {}


def _order(name: str) -> tuple[int, str]:
    return (FIRST.index(name) if name in FIRST else len(FIRST), name)


def _write_dataset(dataset: xr.Dataset, path: Path) -> None:
    aside = path.with_suffix(".partial")
    shutil.rmtree(aside, ignore_errors=True)
    write_zarr(dataset, aside)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(aside, path)
