"""The same analyses on plain least squares of a run's own shape: what needs no network at all."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from recovery_probe import plugins, stats
from recovery_probe.analyze import picture, plots
from recovery_probe.analyze.analysis import Analysis
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.salient import salient
from recovery_probe.errors import InputError
from recovery_probe.record.run import Run
from recovery_probe.simulations.linear_documents import LinearDocuments
from recovery_probe.simulations.writing import simulate

NONE = Estimate(float("nan"))


def least_squares(
    run: Run, found: Mapping[Analysis, xr.Dataset], folder: Path, before: Sequence[list[str]] = ()
) -> dict[str, Any]:
    """What the analyses find of a run (`found`) beside what they find of least squares: a table of
    the `salient` estimates, below the rows from `before` of other analyses, and the picture of the
    latter as `folder/least_squares`. Nothing for a shape that is too large to simulate, or in
    which no document comes back, and beside no cycle, since it is one."""
    c = run.config
    if not stats.is_periodic(run.schedule.values, c.documents.count):
        return {}
    shape = {"documents": c.documents.count, "held_out": c.documents.held_out}
    shape |= {"epochs": c.epochs, "steps": c.steps}
    command = " ".join(f"--{name} {value}" for name, value in shape.items())
    rows: dict[str, list[list[str]]] = {}  # by analysis, each where it first stood
    for row in before:
        rows.setdefault(row[0], []).append(row)
    try:
        scratch, other, reading = _simulated(*shape.values())
    except InputError:
        return {}
    for analysis, dataset in found.items():
        try:
            theirs = analysis(other, *other.controls)
        except plugins.AUTHORS:  # a setting that is for this run's size; a third party's analysis
            continue
        rows[analysis.name] = _rows(analysis, dataset, theirs)
    for figure in Path(scratch.name).glob("least_squares.*"):
        shutil.copy(figure, folder / figure.name)
    return {
        "command": f"python -m recovery_probe.simulate linear_documents {command} --out DIR",
        "reading": reading,
        "drawn": True,
        "columns": ["analysis", "estimate", "here", "its control", "least squares", "its control"],
        "rows": [row for own in rows.values() for row in own],
        "count": sum(map(len, rows.values())),
    }


@functools.lru_cache(maxsize=2)
def _simulated(*shape: int) -> tuple[tempfile.TemporaryDirectory[str], Run, str]:
    """Least squares of a shape (T, H, E, M), kept as long as this process lasts; its picture lies
    beside it, and how to read that."""
    scratch = tempfile.TemporaryDirectory()
    run = simulate(LinearDocuments(*shape), Path(scratch.name) / "run")
    drawn = picture.numbers(run, run.controls)
    plots.write(picture.draw(drawn), Path(scratch.name) / "least_squares")
    return scratch, run, picture.reading(drawn)


def _rows(analysis: Analysis, ours: xr.Dataset, theirs: xr.Dataset) -> list[list[str]]:
    """A row for each estimate that both have."""
    sides = [salient(dataset, side) for dataset in (ours, theirs) for side in (0, 1)]
    return [
        [analysis.name, name, *(side.get(name, NONE).cell for side in sides)]
        for name in sides[0]
        if name in sides[2]
    ]
