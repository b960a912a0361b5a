"""Put analyses to runs and write what they find; `python -m recovery_probe.analyze`."""

from __future__ import annotations

if __name__ == "__main__":  # before the libraries: an interrupt of theirs is no traceback
    from recovery_probe.__main__ import run

    run("analyze")

import contextlib
import inspect
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm import tqdm

from recovery_probe import plots, plugins, report
from recovery_probe.analysis import Analysis, across, match
from recovery_probe.config import nearest
from recovery_probe.errors import HookError, InputError, Missing
from recovery_probe.run import Run
from recovery_probe.store import write_json, write_text, write_zarr

LONG = 10  # seconds of an analysis, after which a plain line says that it is done

# These come first, in the summary and in the report; the others by name.
FIRST = ("recovery", "order_vs_drift", "loss_curves", "online_loss")
# What summary.json holds beside the analyses, whose names these cannot be.
RESERVED = ("runs", "controls", "analyses", "not_done")


def analyze(
    runs: Run | Sequence[Run],
    controls: Sequence[Run] = (),
    analyses: Sequence[Analysis] = (),
    *,
    out: str | os.PathLike[str] | None = None,
    from_checkpoint: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    formats: Sequence[str] = ("html",),
) -> dict[str, Any]:
    """Do `analyses` on a run, or on several that differ in their seed alone, beside their controls.

    All installed analyses when none is given: one that a run lacks something for, or that fails,
    is then left out, and why is told in the summary under `not_done`. `from_checkpoint` lets
    analyses run the model again, which takes torch and time. `options` are further arguments of
    `compute`, by the name of the analysis.

    Writes, under `out/analyses`, NAME.zarr, NAME.png, .svg and .pdf for each and one summary.json
    for all, then `out/report.html` (and `report.md`, as `formats` says). `out` is the run's own
    directory when there is one run. What other calls wrote of other analyses stays. Returns what
    summary.json holds.

    Raises `InputError`, before any work, for a control that differs in more than its schedule,
    for runs that differ in more than their seed, for several without `out`, and for an analysis
    whose name the summary needs; `Missing` when a run lacks what an analysis asked for by name
    needs; `HookError` when one asked for by name fails.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    groups = match(runs, controls)
    if len(runs) > 1 and out is None:
        raise InputError(f"{len(runs)} runs, one report: say where it goes with --out DIR")
    place = Path(out or runs[0].path)
    not_done: dict[str, str] = {}
    chosen = [*analyses] or _default(not_done)
    for analysis in chosen:
        if analysis.name in RESERVED:
            raise InputError(
                f"an analysis cannot be named {analysis.name!r}: summary.json holds "
                f"{', '.join(RESERVED)} of its own"
            )
    for run in [*runs, *controls]:
        run.check()
    given = {a.name: dict((options or {}).get(a.name, {})) for a in chosen}
    _check_options(chosen, options or {})
    for analysis in chosen:
        if analysis.from_checkpoint:
            given[analysis.name]["from_checkpoint"] = from_checkpoint
    folder = place / "analyses"
    old = _read_summary(folder / "summary.json")
    about: dict[str, Any] = old.get("analyses", {})
    found = {name: old[name] for name in about}
    not_done = old.get("not_done", {}) | not_done
    datasets = {}
    bar = tqdm(chosen, unit="analysis", leave=False, disable=None)
    for analysis in bar:
        bar.set_description(f"analysing: {analysis.name}")
        started = time.monotonic()
        not_done.pop(analysis.name, None)
        with _failures(analysis.name, not_done, bool(analyses)):
            datasets[analysis] = across(
                [analysis.compute(r, controls=own, **given[analysis.name]) for r, own in groups]
            )
        seconds = time.monotonic() - started
        if seconds > LONG and not sys.stderr.isatty():
            print(f"analysed {analysis.name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    for analysis, dataset in tqdm(datasets.items(), "drawing", leave=False, disable=None):
        dataset.attrs |= {
            "runs": [str(r.path) for r in runs],
            "controls": [str(c.path) for _, own in groups for c in own],
        }
        with _failures(analysis.name, not_done, bool(analyses)):
            found[analysis.name], about[analysis.name] = _write(analysis, dataset, folder)
    about = {name: told for name, told in about.items() if name not in not_done}
    summary = {
        "runs": {str(r.path): {"status": r.status, "episodes": r.episodes_done} for r in runs},
        "controls": [str(c.path) for _, own in groups for c in own],
        **{name: found[name] for name in sorted(about, key=_order)},
        "analyses": {name: about[name] for name in sorted(about, key=_order)},
        "not_done": not_done,
    }
    write_json(folder / "summary.json", summary)
    for kind in formats:
        text = report.WRITERS[kind](groups, summary, folder)
        write_text(place / f"report.{kind}", text)
    return summary


def simulate(analysis: Analysis, out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Do an analysis that needs no run, write NAME.zarr, NAME.png, .svg, .pdf and NAME.json in
    `out`, and return what the last holds."""
    _check_options([analysis], {analysis.name: options})
    found, about = _write(analysis, analysis.compute(None, **options), Path(out))
    write_json(Path(out) / f"{analysis.name}.json", found)
    return found | {"tables": about["tables"]}


def _write(analysis: Analysis, dataset: xr.Dataset, folder: Path) -> tuple[Any, Any]:
    """Store, figures; what the summary holds of it, and what the report needs to tell of it."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset.attrs |= {
        "analysis": analysis.name,
        "question": analysis.question,
        "null": analysis.null,
        "blind_spot": analysis.blind_spot,
    }
    _write_dataset(dataset, folder / f"{analysis.name}.zarr")
    plots.write(analysis.plot(dataset), folder / analysis.name)
    found = analysis.summary(dataset)
    told = {k: v for k, v in found.items() if k == "verdict"}
    return found, dataset.attrs | told | {"tables": report.tables(dataset)}


def _default(not_done: dict[str, str]) -> list[Analysis]:
    """The installed analyses that a run is put to when none is named; one that cannot be loaded
    is told in `not_done`."""
    known = []
    for name in plugins.installed("analyses"):
        try:
            known.append(plugins.find("analyses", name, Analysis))
        except (Exception, SystemExit) as error:
            not_done[name] = f"failed: {type(error).__name__}: {error}"
    return sorted((a for a in known if not a.stand_alone), key=lambda a: _order(a.name))


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


def _check_options(chosen: Sequence[Analysis], options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `InputError` for an option that its analysis does not take."""
    known = {a.name: inspect.signature(a.compute).parameters for a in chosen}
    for name, values in options.items():
        if name not in known:
            raise InputError(f"option of {name!r}: that analysis is not among {', '.join(known)}")
        takes = [p for p in known[name] if p not in ("run", "controls", "from_checkpoint")]
        for option in values:
            if option not in takes:
                raise InputError(
                    f"{name} has no option {option!r}{nearest(option, takes)}; it takes "
                    f"{', '.join(takes) or 'none'}"
                )


def _write_dataset(dataset: xr.Dataset, path: Path) -> None:
    aside = path.with_suffix(".partial")
    shutil.rmtree(aside, ignore_errors=True)
    write_zarr(dataset, aside)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(aside, path)
