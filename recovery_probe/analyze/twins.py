"""What rounding alone makes of a number: the same of a run's twin, beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from recovery_probe import plugins, stats
from recovery_probe.analyze import estimate
from recovery_probe.analyze.analysis import Analysis
from recovery_probe.analyze.salient import salient
from recovery_probe.record.run import Run


def put(datasets: dict[Analysis, xr.Dataset], groups: Sequence[tuple[Run, list[Run]]]) -> None:
    """Beside every estimate, as the part `twin`, its value with the twins in the place of their
    runs: moved by the mean of (twin - run) over the seeds that have one. In place; nothing where no
    run has a twin, or where not all seeds count."""
    pairs = {i: (run.twins[0], own) for i, (run, own) in enumerate(groups) if run.twins}
    if not pairs:
        return
    for analysis, dataset in datasets.items():
        try:
            theirs = {i: analysis(twin, *own) for i, (twin, own) in pairs.items()}
        except plugins.AUTHORS:  # the twin has got less far; a third party's analysis
            continue
        for name in estimate.names(dataset):
            found = estimate.get(dataset, name)
            each = np.asarray(found.value)[None] if found.each is None else found.each
            shapes = {t[name].shape for t in theirs.values()}
            if len(each) == len(groups) and shapes == {dataset[name].shape}:
                moved = np.stack([t[name].values - each[i] for i, t in theirs.items()])
                twin = found.value + stats.mean_of_counted(moved, axis=0)
                estimate.add(dataset, name, "twin", twin)


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
