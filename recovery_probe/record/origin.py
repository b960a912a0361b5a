"""Where a run began, when that is another run's checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from recovery_probe.errors import Missing
from recovery_probe.record.folder import is_run
from recovery_probe.record.run import Run, open_run


def origin(run: Run) -> tuple[Run, int] | None:
    """The run with whose checkpoint this one began, and after how many of its episodes; None for
    one that began with weights of its own. Raises `Missing` when it is no more where it was."""
    if not (begins := run.provenance.get("begins")):
        return None
    path = Path(os.path.normpath(run.path / begins["run"]))
    if not is_run(path):
        raise Missing(f"{run.path}: began with a checkpoint of {path}, which is not there")
    return open_run(path), begins["episodes_done"]


def first(run: Run) -> Run:
    """The run that began with weights of its own."""
    while above := origin(run):
        run = above[0]
    return run
