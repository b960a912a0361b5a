"""The arrays of a recorder, in a group of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from recovery_probe.record import labels, store
from recovery_probe.record.blank import about, create
from recovery_probe.record.layout import Array, Timeline


def lay_out(
    record: Path,
    timeline: Timeline,
    name: str,
    arrays: Mapping[str, Array],
    coords: Mapping[str, tuple[Any, Any]],
    due: Mapping[Any, NDArray[np.int64]],
    attrs: Mapping[str, Any],
) -> None:
    """Lay them out, without values, for the times that are `due` (time dimension -> times)."""
    T, M = timeline.documents, timeline.steps
    taken = frozenset([*arrays, *coords, *(d for a in arrays.values() for d in a.dims)])
    described: dict[str, Any] = {
        n: (dims, values, about(labels.ABOUT[n])) if n in labels.ABOUT else (dims, values)
        for n, (dims, values) in coords.items()
    }
    sizes = {d: n for a in arrays.values() for d, n in zip(a.dims, a.shape, strict=True)}
    for dimension, size in sizes.items():
        if dimension in labels.NUMBERED and dimension not in described:
            described[dimension] = (dimension, np.arange(size), about(labels.ABOUT[dimension]))
    for time, values in due.items():
        described[time] = (time, values, about(labels.ABOUT[time]))
        described |= timeline.labels(time, values, taken)
    store.write_zarr(xr.Dataset(coords=described, attrs=dict(attrs)), record, group=name)
    group = zarr.open_group(record / name, mode="r+", use_consolidated=False)
    for array_name, array in arrays.items():
        # A chunk holds whole episodes: as many as stay small, since a commit rewrites it.
        rows, per = len(due[array.time]), M if array.time == "step" else 1
        dtype = np.dtype(array.dtype)
        size = int(np.prod(array.shape)) * dtype.itemsize
        episodes = max(1, min(T, 2**18 // max(1, size * per)))
        create(
            group,
            array_name,
            (rows, *array.shape),
            (min(rows, episodes * per), *array.shape),
            dtype.name,
            (array.time, *array.dims),
            about(array.description, array.units) | {"covers": array.covers},
        )


def opened(record: Path, name: str) -> Any:
    """An array (`group/name`), to write to."""
    array: Any = zarr.open_group(record, mode="r+", use_consolidated=False)[name]
    return array.with_config(store.KEEP_EMPTY)


def describe(group: Path, **attrs: Any) -> None:
    """Attributes that a group gets, or has anew."""
    zarr.open_group(group, mode="r+", use_consolidated=False).attrs.update(attrs)
