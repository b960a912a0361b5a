"""The sketched path of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr


def trajectory(run: Any) -> xr.DataArray:
    """`weight_trajectory` of a `Run`."""
    deltas = run.recorder("weight_deltas").sketched
    M = run.config.steps
    due = xr.open_zarr(run.path / "record.zarr", group="weight_deltas").step.values
    # The step after the last of each recorded stretch.
    ends = np.append(due[1:], len(run.schedule) * M)[: deltas.sizes["step"]]
    at = np.zeros(deltas.shape[1:])
    rows, times = [at], [0]
    for start in range(0, len(ends), M * run.config.documents.count):
        these = slice(start, start + M * run.config.documents.count)
        moved = at + deltas[these].values.cumsum(axis=0, dtype="float64")
        whole = ends[these] % M == 0
        rows += list(moved[whole])
        times += (ends[these][whole] // M).tolist()
        at = moved[-1]
    like = deltas[:0].sum("step")  # nothing of its values, and its modules' names
    return like.expand_dims(episodes_done=times).copy(data=np.stack(rows))
