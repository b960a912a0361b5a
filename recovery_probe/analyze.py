"""Put analyses to a run and write what they find; `python -m recovery_probe.analyze`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from recovery_probe import plots, plugins, report
from recovery_probe.analysis import Analysis, check_controls
from recovery_probe.run import Run, write_zarr

HEADLINE = "recovery"  # comes first, in the summary and in the report


def analyze(
    run: Run, controls: Sequence[Run] = (), analyses: Sequence[Analysis] = ()
) -> dict[str, Any]:
    """Do `analyses` (all installed ones when none is given) on a run, beside its controls.

    Writes, under `run.path/analyses`, NAME.zarr, NAME.png and NAME.svg for each and one
    summary.json for all, then `run.path/report.html`. What other calls wrote of other analyses
    stays. Returns what summary.json holds. Raises `InputError` for a control that differs in
    more than its schedule.
    """
    check_controls(run, controls)
    names = sorted(plugins.installed("analyses"), key=lambda name: (name != HEADLINE, name))
    chosen = analyses or [plugins.find("analyses", name, Analysis) for name in names]
    folder = run.path / "analyses"
    folder.mkdir(exist_ok=True)
    path = folder / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    done: dict[str, Any] = summary.get("analyses", {})
    for analysis in chosen:
        dataset = analysis.compute(run, controls=controls)
        dataset.attrs |= {
            "analysis": analysis.name,
            "run": str(run.path),
            "controls": [str(c.path) for c in controls],
            "question": analysis.question,
            "null": analysis.null,
            "blind_spot": analysis.blind_spot,
        }
        _write_dataset(dataset, folder / f"{analysis.name}.zarr")
        plots.write(analysis.plot(dataset), folder / analysis.name)
        found = analysis.summary(dataset)
        done[analysis.name] = dataset.attrs | {k: v for k, v in found.items() if k == "verdict"}
        summary[analysis.name] = found
    summary = {
        "run": str(run.path),
        "status": run.status,
        "episodes_done": run.episodes_done,
        **{k: v for k, v in summary.items() if k in done},
        "analyses": done,
    }
    _write_text(path, json.dumps(summary, indent=2) + "\n")
    _write_text(run.path / "report.html", report.html(run, summary))
    return summary


def _write_dataset(dataset: xr.Dataset, path: Path) -> None:
    aside = path.with_suffix(".partial")
    shutil.rmtree(aside, ignore_errors=True)
    write_zarr(dataset, aside)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(aside, path)


def _write_text(path: Path, text: str) -> None:
    aside = path.with_suffix(".partial")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


if __name__ == "__main__":
    import sys

    from recovery_probe.cli import main

    main(["analyze", *sys.argv[1:]])
