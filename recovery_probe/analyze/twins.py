"""What rounding alone makes of a number: the same of a run's twin, beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from recovery_probe import stats
from recovery_probe.analyze import estimate
from recovery_probe.analyze.analysis import Analysis
from recovery_probe.analyze.salient import salient
from recovery_probe.errors import Missing
from recovery_probe.record.run import Run


def put(datasets: dict[Analysis, xr.Dataset], groups: Sequence[tuple[Run, list[Run]]]) -> None:
    """Beside every estimate its value with the twins in the place of their runs, the mean of those
    that have one: the part `twin`. In place; nothing where no run has a twin."""
    pairs = [(run.twins[0], own) for run, own in groups if run.twins]
    if not pairs:
        return
    for analysis, dataset in datasets.items():
        try:
            theirs = [analysis(twin, *own) for twin, own in pairs]
        except Missing:
            continue
        for name in estimate.names(dataset):
            alike = [t[name].values for t in theirs if t[name].shape == dataset[name].shape]
            if len(alike) == len(theirs):
                estimate.add(dataset, name, "twin", stats.mean_of_counted(np.stack(alike), axis=0))


def near(datasets: dict[Analysis, xr.Dataset]) -> list[str]:
    """The salient estimates that are not clearly larger than what rounding does: what they are away
    from their null is less than twice what they are away from the twin's."""
    return [
        f"{analysis.name}: {name} {one.value:.3g} (twin {one.twin:.3g})"
        for analysis, dataset in datasets.items()
        for name, one in salient(dataset).items()
        if one.twin is not None
        and abs(one.value - (one.null or 0.0)) < 2 * abs(one.value - one.twin)
    ]
